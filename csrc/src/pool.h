// Persistent threads that share the indices of a job.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <pthread.h>
#include <type_traits>

#include "kernel_table.h"
#include "nodes.h"
#include "scratch.h"

struct ktops_pool {
 public:
  // run(index, then) for every index below count; `then` is the index that the same thread runs
  // next, or count when that is not known.
  struct Step {
    size_t count;
    void (*run)(const void* body, size_t index, size_t then);
    const void* body;
    // While other threads are at the step before, a thread that has taken `index` already calls
    // this with n = 0, 1, 2, ... Null: it only waits.
    void (*prepare)(const void* preparation, size_t index, size_t n);
    const void* preparation;
    // [num_nodes]: the indices up to node_ends[0] are those of node 0, and so on. A thread takes
    // its own node's first, then helps with the others. Null: they belong to nobody in particular.
    const size_t* node_ends = nullptr;
  };

  // The caller is the first thread, on cpus[0] where it is let; one worker is started for each of
  // cpus[1..].
  static int32_t create(const int32_t* cpus, uint32_t num_cpus, ktops_pool** pool);
  static void destroy(ktops_pool* pool);

  // The NUMA node of each thread, the caller's first: num_threads() numbers of the system. From
  // then on large matrices are shared out over the nodes; one node, or more than kMaxNodes, is as
  // none.
  void set_nodes(const int32_t* nodes);

  // Held for a whole call of the library; guards the scratch memory too.
  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }

  // body(index), or body(index, then), for every index below count, in any order, on all threads.
  template <class Body> void run(size_t count, const Body& body) {
    const Step only = step(count, body);
    run_steps(&only, 1);
  }
  // Steps one after another: each begins when all indices of the one before are done, with a single
  // wait for the other threads, at the end.
  void run_steps(const Step* steps, size_t num_steps);
  template <class Body> static Step step(size_t count, const Body& body) {
    const auto run = [](const void* b, size_t index, [[maybe_unused]] size_t then) {
      if constexpr (std::is_invocable_v<const Body&, size_t, size_t>)
        (*static_cast<const Body*>(b))(index, then);
      else
        (*static_cast<const Body*>(b))(index);
    };
    return {count, run, &body, nullptr, nullptr, nullptr};
  }
  template <class Body, class Preparation>
  static Step step(size_t count, const Body& body, const Preparation& preparation) {
    Step made = step(count, body);
    made.preparation = &preparation;
    made.prepare = [](const void* p, size_t index, size_t n) {
      (*static_cast<const Preparation*>(p))(index, n);
    };
    return made;
  }
  // The same on the calling thread: for jobs too small to wake anyone.
  static void run_alone(const Step* steps, size_t num_steps);

  // While true, idle workers spin instead of going to sleep, if each has a CPU for itself; those
  // that sleep are woken. For the thread that calls the pool.
  void keep_awake(bool awake);

  uint32_t num_threads() const { return num_workers_ + 1; }
  uint32_t num_nodes() const { return num_nodes_; }
  int32_t node_id(uint32_t node) const { return node_ids_[node]; }
  uint32_t threads_on(uint32_t node) const { return threads_on_[node]; }
  // The CPU of the index-th thread of a node; -1: anywhere.
  int32_t cpu_of(uint32_t node, uint32_t index) const;
  const ktops::KernelTable& kernels() const { return *kernels_; }
  ktops::Scratch& scratch() { return scratch_; }
  // For a call that is made of others, which use the one above.
  ktops::Scratch& outer_scratch() { return outer_scratch_; }

 private:
  struct Worker {
    ktops_pool* pool;
    pthread_t thread;
    int32_t cpu;
    uint32_t node = 0;
    // On a line of its own: a counter that all workers change costs more than a small layer.
    alignas(64) std::atomic<bool> is_inside{false};
  };

  struct alignas(64) Counter {
    std::atomic<size_t> value{0};
  };
  // Indices of a step that are taken from one counter: those from `first` on, as the counter stands
  // at `begin`, until it stands at `end`. `num_threads` have them for their own.
  struct List {
    Counter& counter;
    size_t begin, end, first;
    uint32_t num_threads;

    bool take_run(size_t* from, size_t* to) const;
    size_t index(size_t count) const { return count - begin + first; }
  };

  ktops_pool(const ktops::KernelTable* kernels, uint64_t spin_ns);
  ~ktops_pool();
  ktops_pool(const ktops_pool&) = delete;
  ktops_pool& operator=(const ktops_pool&) = delete;

  bool start_workers(const int32_t* cpus, uint32_t num_cpus);
  void stop_workers();
  void return_to_own_cpu();
  void take_indices(uint32_t own_node);
  bool take_all(const Step& step, const List& list, size_t begin, bool is_ready);
  void await_step(size_t begin, const Step& step, size_t index) const;
  void wait_for_workers();
  uint32_t wait_for_epoch(uint32_t seen);
  bool is_empty() const;
  bool join(Worker& worker);
  void leave(Worker& worker);
  void work(Worker& worker);

  const ktops::KernelTable* const kernels_;
  const uint64_t spin_ns_;
  const int creator_pid_;
  ktops::Scratch scratch_, outer_scratch_;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  Worker* workers_ = nullptr;
  uint32_t num_workers_ = 0;
  int32_t caller_cpu_ = -1; // -1: anywhere
  uint32_t caller_node_ = 0;
  uint32_t num_nodes_ = 1;
  int32_t node_ids_[ktops::kMaxNodes] = {};
  uint32_t threads_on_[ktops::kMaxNodes] = {}; // by node

  // Indices taken, by node (all by the first when they belong to nobody), and done, counted on
  // through the steps.
  Counter next_[ktops::kMaxNodes];
  alignas(64) std::atomic<size_t> done_{0};
  // Rises with every job; what idle workers watch. The rest of its line comes with it.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  // kOpen while workers may join the job, kAwaited while the caller sleeps until they have left. A
  // worker that wakes late finds the gate shut, so nobody waits for it.
  std::atomic<uint32_t> gate_{0};
  // The job; written only while the gate is shut and nobody is inside.
  const Step* steps_ = nullptr;
  size_t num_steps_ = 0;
  std::atomic<uint32_t> num_sleeping_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> is_kept_awake_{false};
};

namespace ktops {

// Holds a pool for a call of the library.
class PoolLock {
 public:
  explicit PoolLock(ktops_pool* pool) : pool_(pool) { pool_->lock(); }
  ~PoolLock() { pool_->unlock(); }
  PoolLock(const PoolLock&) = delete;
  PoolLock& operator=(const PoolLock&) = delete;

 private:
  ktops_pool* pool_;
};

} // namespace ktops
