// The steps of a job: what each thread of it does.
#include <algorithm>
#include <sched.h>

#include "pool.h"
#include "waiting.h"

using ktops::kMaxNodes;
using ktops::kSpinNs;
using ktops::spin_until;

namespace {

// Between the steps of a job nobody sleeps. Whoever gives its CPU away there may get it back only
// milliseconds later, so that is for waits that are as long already.
constexpr uint64_t kPatienceNs = 1'000'000;
// A run is the rest of a step by so many.
constexpr size_t kSharesPerThread = 2;

} // namespace

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
