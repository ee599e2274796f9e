// What the two kinds of prefill share: groups of tokens, units of weights, jobs on all threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "gemm.h"
#include "pool.h"
#include "scratch.h"
#include "tiling.h"

namespace ktops {

constexpr uint32_t kMaxGroupTokens = kMaxGroupBlocks * kBlockTokens;

// Up to kMaxGroupTokens tokens that are multiplied with the same matrix.
struct TokenGroup {
  size_t matrix; // which of the experts
  size_t first;  // its first token, counted through all groups
  size_t first_block;
  uint32_t num_tokens;

  uint32_t num_blocks() const { return (num_tokens + kBlockTokens - 1) / kBlockTokens; }
};

// Cuts num_tokens tokens of a matrix into groups of nearly the same size; returns their end.
TokenGroup* cut_groups(size_t matrix, size_t first, size_t num_tokens, size_t first_block,
                       TokenGroup* groups);
// No more groups than this come of num_tokens tokens for num_matrices matrices.
inline size_t max_groups(size_t num_tokens, size_t num_matrices) {
  return num_tokens / kMaxGroupTokens + num_matrices;
}

// Memory of one thread.
class ThreadSpace {
 public:
  // `matrices`: all that units are made of.
  ThreadSpace(Carver& carver, std::initializer_list<const ktops_matrix*> matrices);

  uint8_t* unpacked() const { return unpacked_; }
  float* sums() const { return sums_; }

  // Units of the rows [row, row + num_rows) of a matrix into units[first_unit..]; returns their
  // number. Rows that are not a packed panel are packed here; these units live until their places
  // among the units are given to others.
  uint32_t make_units(const KernelTable& kernels, const ktops_matrix& matrix, size_t expert,
                      size_t row, size_t num_rows, WeightUnit* units, uint32_t first_unit) const;

 private:
  const uint8_t* packed(const KernelTable& kernels, const ktops_matrix& matrix,
                        const WeightRows& weights, size_t row, size_t panel) const;

  uint8_t* unpacked_;
  float* sums_;
  uint8_t *panels_ = nullptr, *short_panel_ = nullptr;
  size_t panel_bytes_ = 0;
};

// Units in a job: as many as `most` if each thread still gets several jobs.
uint32_t units_per_job(size_t num_units, size_t num_groups, uint32_t most, size_t num_threads);

// body(space, index) for every one of `jobs`, those of a node in order; spaces: one for each
// thread.
template <class Body>
void run_products(ktops_pool& pool, const ThreadSpace* spaces, const RowJobs& jobs,
                  const Body& body) {
  struct alignas(64) Counter {
    std::atomic<size_t> value;
  };
  const GemmKernels& gemm = *pool.kernels().gemm;
  const uint32_t num_nodes = jobs.num_nodes();
  Counter next[kMaxNodes];
  size_t slot_ends[kMaxNodes]; // of each node's threads
  for (uint32_t node = 0; node < num_nodes; ++node) {
    next[node].value.store(jobs.start(node), std::memory_order_relaxed);
    slot_ends[node] = (node == 0 ? 0 : slot_ends[node - 1]) + pool.threads_on(node);
  }
  const auto run = [&](size_t slot) {
    uint32_t own_node = 0;
    while (num_nodes > 1 && slot >= slot_ends[own_node])
      ++own_node;
    bool has_begun = false;
    for (uint32_t i = 0; i < num_nodes; ++i) {
      const uint32_t node = (own_node + i) % num_nodes;
      const auto take = [&] { return next[node].value.fetch_add(1, std::memory_order_relaxed); };
      for (size_t index = take(); index < jobs.end(node); index = take()) {
        if (!has_begun)
          gemm.begin();
        has_begun = true;
        body(spaces[slot], index);
      }
    }
    if (has_begun)
      gemm.end();
  };
  ktops_pool::Step step = ktops_pool::step(pool.num_threads(), run);
  step.node_ends = num_nodes == 1 ? nullptr : slot_ends;
  pool.run_steps(&step, 1);
}

} // namespace ktops
