// The thread pool under stress: every index runs exactly once, whoever sleeps or is late.
#include <atomic>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../src/pool.h"
#include "check.h"

using namespace testing;

namespace {

void check_indices(ktops_pool* pool, size_t count) {
  std::vector<std::atomic<uint32_t>> runs(count);
  pool->lock();
  pool->run(count, [&](size_t index) { runs[index].fetch_add(1, std::memory_order_relaxed); });
  pool->unlock();
  for (size_t i = 0; i < count; ++i)
    CHECK(runs[i].load() == 1, "index %zu of %zu ran %u times", i, count, runs[i].load());
}

// A step sees everything that the one before wrote, and no index of it runs earlier.
void check_steps(ktops_pool* pool, size_t first_count, size_t second_count) {
  std::vector<uint32_t> written(first_count), runs(second_count);
  std::atomic<size_t> num_early{0}, num_astray{0};
  const auto first = [&](size_t index) { ++written[index]; };
  const auto second = [&](size_t index) {
    for (const uint32_t value : written)
      num_early += value != 1;
    ++runs[index];
  };
  const auto prepare = [&](size_t index, size_t) { num_astray += index >= second_count; };
  const auto third = [&](size_t index) { num_early += runs[index] != 1; };
  const ktops_pool::Step steps[] = {ktops_pool::step(first_count, first),
                                    ktops_pool::step(second_count, second, prepare),
                                    ktops_pool::step(second_count, third)};
  pool->lock();
  pool->run_steps(steps, 3);
  pool->unlock();
  CHECK(num_early == 0 && num_astray == 0, "%zu, %zu indices: %zu early, %zu astray", first_count,
        second_count, num_early.load(), num_astray.load());
}

void check_many_steps(uint32_t num_threads) {
  const TestPool pool(num_threads);
  for (size_t i = 0; i < 3000; ++i)
    check_steps(pool, i % 23, i * 7 % 31);
}

// Where a thread may run is its own business: a job leaves that as it was.
void check_affinity_is_kept() {
  cpu_set_t before, after;
  sched_getaffinity(0, sizeof before, &before);
  int32_t last = 0; // not where the thread is now, if there is another
  for (int32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<size_t>(cpu), &before) && cpu != sched_getcpu())
      last = cpu;
  const int32_t cpus[] = {last, 0};
  ktops_pool* pool = nullptr;
  CHECK(ktops_pool_create(cpus, 2, &pool) == KTOPS_OK, "create");
  check_indices(pool, 100);
  sched_getaffinity(0, sizeof after, &after);
  CHECK(CPU_EQUAL(&before, &after), "the caller was pinned");
  ktops_pool_destroy(pool);
}

void check_many_small_jobs(uint32_t num_threads) {
  const TestPool pool(num_threads);
  for (size_t i = 0; i < 20'000; ++i)
    check_indices(pool, i % 23);
}

// Pauses let the workers fall asleep, so that each job has to wake them.
void check_sleeping_workers() {
  const TestPool pool(3);
  for (int i = 0; i < 100; ++i) {
    usleep(300);
    check_indices(pool, 50);
  }
}

// Workers that were kept awake, then not, then are gone: jobs and the end work in any state.
void check_kept_awake() {
  for (int i = 0; i < 20; ++i) {
    const TestPool pool(2);
    usleep(200);
    static_cast<ktops_pool*>(pool)->keep_awake(true);
    for (int job = 0; job < 3; ++job) {
      check_indices(pool, 50);
      usleep(100);
    }
    if (i % 2 != 0)
      static_cast<ktops_pool*>(pool)->keep_awake(false);
    usleep(100);
    check_indices(pool, 50);
  }
}

void check_short_lives() {
  for (uint32_t i = 0; i < 200; ++i) {
    const TestPool pool(1 + i % 7);
    if (i % 3 != 0)
      check_indices(pool, i % 11);
  }
}

void check_concurrent_callers() {
  const TestPool pool(3);
  pthread_t callers[4];
  for (pthread_t& caller : callers)
    pthread_create(
        &caller, nullptr,
        [](void* shared) -> void* {
          for (size_t i = 0; i < 1000; ++i)
            check_indices(static_cast<ktops_pool*>(shared), i % 17);
          return nullptr;
        },
        static_cast<ktops_pool*>(pool));
  for (const pthread_t caller : callers)
    pthread_join(caller, nullptr);
}

// A forked child has no workers; its caller must do all the work and destroying must not hang.
void check_fork() {
  ktops_pool* pool = nullptr;
  const int32_t cpus[] = {0, 1, 2};
  CHECK(ktops_pool_create(cpus, 3, &pool) == KTOPS_OK, "create");
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    num_failures = 0;
    check_indices(pool, 100);
    ktops_pool_destroy(pool);
    _exit(num_failures == 0 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with status %d", status);
  ktops_pool_destroy(pool);
}

} // namespace

int main() {
  for (const uint32_t num_threads : {1u, 2u, 4u, 9u})
    check_many_small_jobs(num_threads);
  for (const uint32_t num_threads : {1u, 2u, 4u, 9u})
    check_many_steps(num_threads);
  check_affinity_is_kept();
  check_sleeping_workers();
  check_kept_awake();
  check_short_lives();
  check_concurrent_callers();
  check_fork();
  return result();
}
