// The life of the threads: started and pinned, told their nodes, stopped.
#include "pool.h"

#include <algorithm>
#include <climits>
#include <new>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "isa_select.h"
#include "waiting.h"

using ktops::futex_wake;
using ktops::kCrowdedSpinNs;
using ktops::kMaxNodes;
using ktops::kSpinNs;

namespace {

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
