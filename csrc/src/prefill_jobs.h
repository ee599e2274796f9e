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

// body(space, job) for every job below count, taken in order; spaces: one for each thread.
template <class Body>
void run_products(ktops_pool& pool, const ThreadSpace* spaces, size_t count, const Body& body) {
  const GemmKernels& gemm = *pool.kernels().gemm;
  std::atomic<size_t> next{0};
  pool.run(pool.num_threads(), [&](size_t slot) {
    size_t job = next.fetch_add(1, std::memory_order_relaxed);
    if (job >= count)
      return;
    gemm.begin();
    for (; job < count; job = next.fetch_add(1, std::memory_order_relaxed))
      body(spaces[slot], job);
    gemm.end();
  });
}

} // namespace ktops
