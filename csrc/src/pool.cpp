#include "pool.h"

#include <algorithm>
#include <climits>
#include <immintrin.h>
#include <linux/futex.h>
#include <new>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "isa_select.h"

using ktops::kMaxNodes;

namespace {

using ktops::now_ns;

// Bits of the gate; the ones above change whenever somebody leaves while the caller sleeps.
constexpr uint32_t kOpen = 1, kAwaited = 2, kLeft = 4;

// Long enough to bridge the gap between two matrices of a layer, short enough to give the core back
// to whoever computes in between.
constexpr uint64_t kSpinNs = 40'000;
// With more threads than CPUs a spinning thread stands in the way of the one it waits for.
constexpr uint64_t kCrowdedSpinNs = 1'000;
// Between the steps of a job nobody sleeps. Whoever gives its CPU away there may get it back only
// milliseconds later, so that is for waits that are as long already.
constexpr uint64_t kPatienceNs = 1'000'000;
// A run is the rest of a step by so many.
constexpr size_t kSharesPerThread = 2;

void futex_wait(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// True once done() holds, false when spin_ns have passed first.
template <class Done> bool spin_until(uint64_t spin_ns, const Done& done) {
  if (done())
    return true;
  for (const uint64_t start = now_ns(); now_ns() - start < spin_ns;) {
    for (int i = 0; i < 16; ++i) {
      _mm_pause();
      if (done())
        return true;
    }
  }
  return false;
}

uint32_t num_allowed_cpus() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return UINT32_MAX; // more CPUs than the set can hold
  return static_cast<uint32_t>(CPU_COUNT(&allowed));
}

void pin_this_thread(int32_t cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  if (cpu < 0 || cpu >= CPU_SETSIZE)
    return;
  CPU_SET(static_cast<size_t>(cpu), &only);
  sched_setaffinity(0, sizeof only, &only); // outside the allowed set: runs unpinned
}

} // namespace

ktops_pool::ktops_pool(const ktops::KernelTable* kernels, uint64_t spin_ns)
    : kernels_(kernels), spin_ns_(spin_ns), creator_pid_(getpid()) {}

ktops_pool::~ktops_pool() {
  stop_workers();
  delete[] workers_;
  pthread_mutex_destroy(&mutex_);
}

int32_t ktops_pool::create(const int32_t* cpus, uint32_t num_cpus, ktops_pool** pool) {
  const ktops::KernelTable* kernels = ktops::select_kernels();
  if (kernels == nullptr)
    return KTOPS_ERROR_UNKNOWN_ISA;
  const uint64_t spin_ns = num_cpus <= num_allowed_cpus() ? kSpinNs : kCrowdedSpinNs;
  auto* made = new (std::nothrow) ktops_pool(kernels, spin_ns);
  if (made == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  made->workers_ = new (std::nothrow) Worker[num_cpus];
  if (made->workers_ == nullptr) {
    delete made;
    return KTOPS_ERROR_OUT_OF_MEMORY;
  }
  made->caller_cpu_ = cpus[0] < CPU_SETSIZE ? cpus[0] : -1;
  if (!made->start_workers(cpus, num_cpus)) {
    delete made;
    return KTOPS_ERROR_THREADS;
  }
  made->threads_on_[0] = made->num_threads();
  *pool = made;
  return KTOPS_OK;
}

void ktops_pool::destroy(ktops_pool* pool) { delete pool; }

void ktops_pool::set_nodes(const int32_t* nodes) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < num_threads(); ++i) {
    if (std::find(node_ids_, node_ids_ + count, nodes[i]) != node_ids_ + count)
      continue;
    if (count == kMaxNodes) {
      count = 0;
      break;
    }
    node_ids_[count++] = nodes[i];
  }
  std::sort(node_ids_, node_ids_ + count);
  num_nodes_ = std::max(count, 1u);
  std::fill_n(threads_on_, num_nodes_, 0);
  for (uint32_t i = 0; i < num_threads(); ++i) {
    const auto node = std::find(node_ids_, node_ids_ + count, nodes[i]) - node_ids_;
    const uint32_t known = count == 0 ? 0 : static_cast<uint32_t>(node);
    ++threads_on_[known];
    (i == 0 ? caller_node_ : workers_[i - 1].node) = known;
  }
}

int32_t ktops_pool::cpu_of(uint32_t node, uint32_t index) const {
  if (caller_node_ == node && index-- == 0)
    return caller_cpu_;
  for (uint32_t i = 0; i < num_workers_; ++i)
    if (workers_[i].node == node && index-- == 0)
      return workers_[i].cpu;
  return -1;
}

bool ktops_pool::start_workers(const int32_t* cpus, uint32_t num_cpus) {
  // Signals are for the threads of the application.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool started = true;
  while (started && num_workers_ + 1 < num_cpus) {
    Worker& worker = workers_[num_workers_];
    worker.pool = this;
    worker.cpu = cpus[num_workers_ + 1];
    const auto body = [](void* argument) -> void* {
      auto* self = static_cast<Worker*>(argument);
      pin_this_thread(self->cpu);
      self->pool->work(*self);
      return nullptr;
    };
    started = pthread_create(&worker.thread, nullptr, body, &worker) == 0;
    if (started)
      ++num_workers_;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

void ktops_pool::stop_workers() {
  if (getpid() != creator_pid_) // threads do not survive a fork
    return;
  stop_.store(true, std::memory_order_seq_cst);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(epoch_, INT_MAX);
  for (uint32_t i = 0; i < num_workers_; ++i)
    pthread_join(workers_[i].thread, nullptr);
}

// The epoch rises without a job: who wakes finds the gate shut and goes on waiting.
void ktops_pool::keep_awake(bool awake) {
  is_kept_awake_.store(awake && spin_ns_ == kSpinNs, std::memory_order_relaxed);
  if (!awake)
    return;
  return_to_own_cpu(); // where no worker spins
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) != 0)
    futex_wake(epoch_, INT_MAX);
}

void ktops_pool::run_alone(const Step* steps, size_t num_steps) {
  for (size_t s = 0; s < num_steps; ++s)
    for (size_t index = 0; index < steps[s].count; ++index)
      steps[s].run(steps[s].body, index, index + 1);
}

void ktops_pool::run_steps(const Step* steps, size_t num_steps) {
  size_t count = 0; // no more threads than this find work
  for (size_t s = 0; s < num_steps; ++s)
    count = std::max(count, steps[s].count);
  if (count <= 1 || num_workers_ == 0)
    return run_alone(steps, num_steps);
  return_to_own_cpu();
  steps_ = steps;
  num_steps_ = num_steps;
  for (uint32_t node = 0; node < num_nodes_; ++node)
    next_[node].value.store(0, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_seq_cst);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (num_sleeping_.load(std::memory_order_seq_cst) != 0)
    futex_wake(epoch_, count - 1 < num_workers_ ? static_cast<int>(count - 1) : INT_MAX);
  take_indices(caller_node_);
  wait_for_workers();
}

// The caller's thread belongs to the application and must not stay pinned: threads that it starts
// would all inherit its one CPU. So when it has strayed, to a worker's CPU perhaps, it is only
// moved back; the scheduler then leaves it there while nothing better turns up.
void ktops_pool::return_to_own_cpu() {
  cpu_set_t allowed;
  if (caller_cpu_ < 0 || sched_getcpu() == caller_cpu_ ||
      sched_getaffinity(0, sizeof allowed, &allowed) != 0 ||
      !CPU_ISSET(static_cast<size_t>(caller_cpu_), &allowed))
    return;
  pin_this_thread(caller_cpu_);
  sched_setaffinity(0, sizeof allowed, &allowed);
}

// Runs of neighbouring indices, which read neighbouring memory: long ones first, single ones at the
// end of a list, so that threads of different speed finish together. False: all are taken.
bool ktops_pool::List::take_run(size_t* from, size_t* to) const {
  const size_t num_shares = kSharesPerThread * num_threads;
  *from = counter.value.load(std::memory_order_relaxed);
  while (*from < end) {
    *to = *from + std::max<size_t>((end - *from) / num_shares, 1);
    if (counter.value.compare_exchange_weak(*from, *to, std::memory_order_relaxed))
      return true;
  }
  return false;
}

void ktops_pool::take_indices(uint32_t own_node) {
  size_t begins[kMaxNodes]; // of the step, in the counter of each node
  std::fill_n(begins, num_nodes_, 0);
  size_t begin = 0;
  for (size_t s = 0; s < num_steps_; ++s) {
    const Step& step = steps_[s];
    if (step.node_ends == nullptr) {
      take_all(step, {next_[0], begins[0], begins[0] + step.count, 0, num_threads()}, begin, false);
      begins[0] += step.count;
    } else {
      bool is_ready = false;
      for (uint32_t i = 0; i < num_nodes_; ++i) {
        const uint32_t node = (own_node + i) % num_nodes_;
        const size_t first = node == 0 ? 0 : step.node_ends[node - 1];
        const size_t end = begins[node] + step.node_ends[node] - first;
        is_ready = take_all(step, {next_[node], begins[node], end, first, threads_on_[node]}, begin,
                            is_ready);
        begins[node] = end;
      }
    }
    begin += step.count;
  }
}

// Runs what can be taken of a list, once the first `begin` indices of the job are done. The next
// run is taken before the last index of a run, which calls the memory of the next into the cache;
// not near the end of a list, where others would wait for it. Returns whether the step has begun,
// `is_ready` whether that is known.
bool ktops_pool::take_all(const Step& step, const List& list, size_t begin, bool is_ready) {
  const size_t near_end = 2 * kSharesPerThread * list.num_threads;
  size_t from, to;
  bool is_taken = list.take_run(&from, &to);
  if (is_taken && !is_ready)
    await_step(begin, step, list.index(from));
  is_ready |= is_taken;
  while (is_taken) {
    const size_t final_index = list.index(to - 1), num_done = to - from;
    for (size_t index = list.index(from); index < final_index; ++index)
      step.run(step.body, index, index + 1);
    const bool is_early = to + near_end < list.end;
    is_taken = is_early && list.take_run(&from, &to);
    step.run(step.body, final_index, is_taken ? list.index(from) : step.count);
    done_.fetch_add(num_done, std::memory_order_release);
    is_taken = is_taken || list.take_run(&from, &to);
  }
  return is_ready;
}

// Until the first `begin` indices are done: each of them is in the hands of a thread that works,
// because indices are taken in order.
void ktops_pool::await_step(size_t begin, const Step& step, size_t index) const {
  const uint64_t patience_ns = spin_ns_ == kSpinNs ? kPatienceNs : spin_ns_;
  size_t n = 0;
  const auto is_ready = [&] {
    if (done_.load(std::memory_order_acquire) >= begin)
      return true;
    if (step.prepare != nullptr)
      step.prepare(step.preparation, index, n++);
    return false;
  };
  while (!spin_until(patience_ns, is_ready))
    sched_yield();
}

bool ktops_pool::is_empty() const {
  for (uint32_t i = 0; i < num_workers_; ++i)
    if (workers_[i].is_inside.load(std::memory_order_seq_cst))
      return false;
  return true;
}

void ktops_pool::wait_for_workers() {
  gate_.store(0, std::memory_order_seq_cst);
  if (spin_until(spin_ns_, [this] { return is_empty(); }))
    return;
  gate_.store(kAwaited, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t value = gate_.load(std::memory_order_seq_cst);
    if (is_empty())
      return;
    futex_wait(gate_, value);
  }
}

// A worker says that it is inside before it looks at the gate, and the caller shuts the gate before
// it looks at the workers: one of them sees the other.
bool ktops_pool::join(Worker& worker) {
  if ((gate_.load(std::memory_order_relaxed) & kOpen) == 0)
    return false;
  worker.is_inside.store(true, std::memory_order_seq_cst);
  if ((gate_.load(std::memory_order_seq_cst) & kOpen) != 0)
    return true;
  leave(worker);
  return false;
}

void ktops_pool::leave(Worker& worker) {
  worker.is_inside.store(false, std::memory_order_seq_cst);
  if ((gate_.load(std::memory_order_seq_cst) & kAwaited) == 0)
    return;
  gate_.fetch_add(kLeft, std::memory_order_seq_cst);
  futex_wake(gate_, 1);
}

uint32_t ktops_pool::wait_for_epoch(uint32_t seen) {
  const auto changed = [this, seen] { return epoch_.load(std::memory_order_acquire) != seen; };
  bool has_changed = spin_until(spin_ns_, changed);
  while (!has_changed && is_kept_awake_.load(std::memory_order_relaxed))
    has_changed = spin_until(spin_ns_, changed);
  if (!has_changed) {
    num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
    while (epoch_.load(std::memory_order_seq_cst) == seen)
      futex_wait(epoch_, seen);
    num_sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }
  return epoch_.load(std::memory_order_acquire);
}

void ktops_pool::work(Worker& worker) {
  for (uint32_t seen = 0;;) {
    seen = wait_for_epoch(seen);
    if (stop_.load(std::memory_order_acquire))
      return;
    if (join(worker)) {
      take_indices(worker.node);
      leave(worker);
    }
  }
}
