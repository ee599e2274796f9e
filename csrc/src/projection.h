// Products of some rows of a matrix with tokens: what jobs are made of.
#pragma once

#include <algorithm>

#include "activations.h"
#include "pool.h"
#include "tiling.h"

namespace ktops {

// Rows [first_row, last_row) of a matrix times num_tokens records from first_record on, into
// y[t * y_stride + row]. `next` is what the caller reads then.
struct RowsProduct {
  size_t first_row, last_row;
  const uint8_t* next;
  size_t first_record, num_tokens;
  float* y;
  size_t y_stride;
};

void multiply_rows(const WeightRows& weights, const Activations& activations,
                   const RowsProduct& product);

// A thread that waits for others before it may compute calls the weights of its next job into its
// second-level cache, so many bytes at a time, until about half of a small one is full.
constexpr size_t kPreparedBytes = 1024, kMostPrepared = 384;

// The n-th piece of the rows' weights, if it is there and n below kMostPrepared.
void prefetch_rows(const WeightRows& weights, size_t first_row, size_t last_row, size_t n);

// One matrix for a few tokens, cut into jobs of neighbouring rows, those of a NUMA node together.
class Projection {
 public:
  Projection() = default;
  Projection(const ktops_matrix& matrix, size_t num_tokens, const ktops_pool& pool);

  size_t num_jobs() const { return jobs_.count(); }
  uint32_t num_nodes() const { return jobs_.num_nodes(); }
  // For a step of these jobs alone.
  const size_t* node_ends() const { return jobs_.node_ends(); }
  // The end of a node's jobs; those of one node for all are the first one's.
  size_t end(uint32_t node) const { return jobs_.end(std::min(node, jobs_.num_nodes() - 1)); }
  RowJobs::Job job(size_t index) const { return jobs_.job(index); }
  // All tokens times the rows of a job, into y: [num_tokens, rows].
  void run(size_t index, const Activations& activations, float* y) const;
  void prefetch(size_t index, size_t n) const;

 private:
  WeightRows weights_{};
  size_t num_tokens_ = 0;
  RowJobs jobs_{0, 1, 1, 1};
};

// The jobs of two projections as those of one step: of each NUMA node, its jobs of the first, then
// its jobs of the second.
class ProjectionPair {
 public:
  struct Job {
    bool is_second;
    size_t index;
  };

  ProjectionPair(const Projection& first, const Projection& second);

  size_t num_jobs() const { return ends_[num_nodes_ - 1]; }
  const size_t* node_ends() const { return num_nodes_ == 1 ? nullptr : ends_; }
  Job job(size_t index) const;

 private:
  const Projection &first_, &second_;
  uint32_t num_nodes_;
  size_t ends_[kMaxNodes];
};

} // namespace ktops
