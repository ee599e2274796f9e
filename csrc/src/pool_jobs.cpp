// A job of the pool: workers are woken, let in, awaited, and idle until the next.
#include <algorithm>
#include <climits>

#include "pool.h"
#include "waiting.h"

using ktops::futex_wait;
using ktops::futex_wake;
using ktops::kSpinNs;
using ktops::spin_until;

namespace {

// Bits of the gate; the ones above change whenever somebody leaves while the caller sleeps.
constexpr uint32_t kOpen = 1, kAwaited = 2, kLeft = 4;

} // namespace

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
