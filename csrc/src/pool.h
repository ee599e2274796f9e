// Persistent threads that share the indices of a job.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <pthread.h>

#include "kernel_table.h"
#include "scratch.h"

struct ktops_pool {
 public:
  using Job = void (*)(void* context, size_t index);

  // The caller is the first thread; one worker is started for each of cpus[1..].
  static int32_t create(const int32_t* cpus, uint32_t num_cpus, ktops_pool** pool);
  static void destroy(ktops_pool* pool);

  // Held for a whole call of the library; guards the scratch memory too.
  void lock() { pthread_mutex_lock(&mutex_); }
  void unlock() { pthread_mutex_unlock(&mutex_); }

  // body(index) for every index below count, in any order, on all threads.
  template <class Body> void run(size_t count, const Body& body) {
    const Job job = [](void* context, size_t index) {
      (*static_cast<const Body*>(context))(index);
    };
    run_job(count, job, const_cast<Body*>(&body));
  }
  // The same on the calling thread: for jobs too small to wake anyone.
  template <class Body> static void run_alone(size_t count, const Body& body) {
    for (size_t i = 0; i < count; ++i)
      body(i);
  }

  uint32_t num_threads() const { return num_workers_ + 1; }
  const ktops::KernelTable& kernels() const { return *kernels_; }
  ktops::Scratch& scratch() { return scratch_; }

 private:
  struct Worker {
    ktops_pool* pool;
    pthread_t thread;
    int32_t cpu;
    // On a line of its own: a counter that all workers change costs more than a small layer.
    alignas(64) std::atomic<bool> is_inside{false};
  };

  ktops_pool(const ktops::KernelTable* kernels, uint64_t spin_ns);
  ~ktops_pool();
  ktops_pool(const ktops_pool&) = delete;
  ktops_pool& operator=(const ktops_pool&) = delete;

  bool start_workers(const int32_t* cpus, uint32_t num_cpus);
  void stop_workers();
  void run_job(size_t count, Job job, void* context);
  void take_indices();
  void wait_for_workers();
  uint32_t wait_for_epoch(uint32_t seen);
  bool is_empty() const;
  bool join(Worker& worker);
  void leave(Worker& worker);
  void work(Worker& worker);

  const ktops::KernelTable* const kernels_;
  const uint64_t spin_ns_;
  const int creator_pid_;
  ktops::Scratch scratch_;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  Worker* workers_ = nullptr;
  uint32_t num_workers_ = 0;

  alignas(64) std::atomic<size_t> next_{0};
  // Rises with every job; what idle workers watch. The rest of its line comes with it.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  // kOpen while workers may join the job, kAwaited while the caller sleeps until they have left. A
  // worker that wakes late finds the gate shut, so nobody waits for it.
  std::atomic<uint32_t> gate_{0};
  // The job; written only while the gate is shut and nobody is inside.
  Job job_ = nullptr;
  void* context_ = nullptr;
  size_t count_ = 0;
  std::atomic<uint32_t> num_sleeping_{0};
  std::atomic<bool> stop_{false};
};
