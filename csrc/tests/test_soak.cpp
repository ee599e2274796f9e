// Small jobs without end while threads are stopped and continued at random: none may hang, and none
// may give a wrong result. A process of its own works; this one stops its threads, the caller's and
// the workers', at whatever instruction they are.
//
//   test_soak [jobs]        or KTOPS_SOAK_JOBS; a million takes minutes
#include <atomic>
#include <csignal>
#include <dirent.h>
#include <random>
#include <sched.h>
#include <string>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

constexpr uint32_t kThreads = 4; // more than CI has cores
constexpr size_t kDefaultJobs = 50'000;
constexpr uint32_t kLongestStopUs = 1000, kLongestGapUs = 2000;
constexpr unsigned kHungAfterSeconds = 60; // without a finished job
constexpr size_t kExpertsEvery = 64;

// Three steps that depend on one another.
void check_steps(ktops_pool* pool, size_t count) {
  std::vector<uint32_t> first(count), second(count);
  std::atomic<size_t> num_wrong{0};
  const auto write = [&](size_t index) { ++first[index]; };
  const auto copy = [&](size_t index) {
    for (const uint32_t value : first)
      num_wrong += value != 1;
    second[index] += first[count - 1 - index];
  };
  const auto compare = [&](size_t index) { num_wrong += second[index] != 1; };
  const ktops_pool::Step steps[] = {ktops_pool::step(count, write), ktops_pool::step(count, copy),
                                    ktops_pool::step(count, compare)};
  pool->lock();
  pool->run_steps(steps, 3);
  pool->unlock();
  CHECK(num_wrong == 0, "%zu indices: %zu wrong values", count, num_wrong.load());
}

// A small mixture of experts, its results compared with the first ones.
class Experts {
 public:
  explicit Experts(ktops_pool* pool) : pool_(pool) {
    std::mt19937 random(1);
    for (std::vector<uint8_t>& matrix : weights_)
      matrix = random_weights(random, KTOPS_TYPE_Q8_0, 4 * kSize * kSize);
    x_ = random_floats(random, kTokens * kSize);
    shares_ = random_floats(random, 2 * kTokens);
    for (size_t i = 0; i < 2 * kTokens; ++i)
      ids_.push_back(static_cast<int32_t>(random() % 4));
    run(expected_);
  }
  void check() {
    std::vector<float> y;
    run(y);
    CHECK(memcmp(y.data(), expected_.data(), y.size() * sizeof(float)) == 0, "experts differ");
  }

 private:
  static constexpr size_t kSize = 128, kTokens = 32;

  void run(std::vector<float>& y) {
    y.assign(kTokens * kSize, NAN);
    const auto matrix = [this](size_t i) {
      return ktops_matrix{weights_[i].data(), kSize, kSize, KTOPS_TYPE_Q8_0, 0, 4, 0};
    };
    const ktops_moe_args args{matrix(0),      matrix(1), matrix(2), x_.data(), ids_.data(),
                              shares_.data(), y.data(),  kTokens,   2,         0};
    CHECK(ktops_moe_forward(pool_, &args) == KTOPS_OK, "experts");
  }

  ktops_pool* pool_;
  std::vector<uint8_t> weights_[3];
  std::vector<float> x_, shares_, expected_;
  std::vector<int32_t> ids_;
};

int work(size_t num_jobs) {
  const TestPool pool(kThreads);
  Experts experts(pool);
  for (size_t i = 0; i < num_jobs && num_failures == 0; ++i) {
    if (i % 1024 == 0)
      alarm(kHungAfterSeconds);
    if (i % kExpertsEvery == 0)
      experts.check();
    else
      check_steps(pool, 1 + i % 19);
    if (i % 509 == 0)
      usleep(200); // workers fall asleep
  }
  return result();
}

std::vector<pid_t> threads_of(pid_t process) {
  std::vector<pid_t> threads;
  DIR* folder = opendir(("/proc/" + std::to_string(process) + "/task").c_str());
  while (const dirent* entry = folder == nullptr ? nullptr : readdir(folder))
    if (const int thread = atoi(entry->d_name); thread > 0)
      threads.push_back(thread);
  if (folder != nullptr)
    closedir(folder);
  return threads;
}

// Stops random threads of a process for random times until it ends; its status, and how many stops.
int disturb(pid_t process, size_t* num_stops) {
  std::mt19937 random(2);
  int status = 0;
  for (;;) {
    usleep(random() % kLongestGapUs);
    if (waitpid(process, &status, WNOHANG) == process && (WIFEXITED(status) || WIFSIGNALED(status)))
      return status;
    const std::vector<pid_t> threads = threads_of(process);
    if (threads.empty())
      continue;
    const pid_t thread = threads[random() % threads.size()];
    if (ptrace(PTRACE_SEIZE, thread, nullptr, nullptr) != 0)
      continue; // it has just ended
    int stopped = 0;
    if (ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr) != 0 ||
        waitpid(thread, &stopped, __WALL) != thread)
      continue;
    if (WIFEXITED(stopped) || WIFSIGNALED(stopped)) {
      if (thread == process)
        return stopped;
      continue;
    }
    ++*num_stops;
    usleep(random() % kLongestStopUs);
    // A signal that it was stopped for instead of our interruption is passed on.
    const bool by_us = stopped >> 16 == PTRACE_EVENT_STOP;
    ptrace(PTRACE_DETACH, thread, nullptr,
           reinterpret_cast<void*>(by_us ? intptr_t{0} : intptr_t{WSTOPSIG(stopped)}));
  }
}

bool may_trace(pid_t process) {
  if (ptrace(PTRACE_SEIZE, process, nullptr, nullptr) != 0)
    return false;
  ptrace(PTRACE_INTERRUPT, process, nullptr, nullptr);
  waitpid(process, nullptr, __WALL);
  return ptrace(PTRACE_DETACH, process, nullptr, nullptr) == 0;
}

} // namespace

int main(int argc, char** argv) {
  const char* wanted = argc > 1 ? argv[1] : getenv("KTOPS_SOAK_JOBS");
  const size_t num_jobs = wanted == nullptr ? kDefaultJobs : strtoull(wanted, nullptr, 10);
  const pid_t worker = fork();
  if (worker == 0) {
    const int status = work(num_jobs);
    fflush(nullptr);
    _exit(status);
  }
  if (!may_trace(worker)) {
    kill(worker, SIGKILL);
    waitpid(worker, nullptr, 0);
    printf("this machine lets nobody stop single threads\n");
    return kSkipped;
  }
  size_t num_stops = 0;
  const int status = disturb(worker, &num_stops);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "worker ended with status %d%s", status,
        WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ": a job hung" : "");
  printf("%zu jobs, threads stopped %zu times\n", num_jobs, num_stops);
  return result();
}
