// Rows shared out over NUMA nodes: which node's memory holds them, and whose threads take them
// first.
//
// Of n nodes, node k has rows [k/n, (k+1)/n) of every matrix that is large enough, in steps of
// kNodeRows. Nodes are counted from 0 here, in the order of their numbers in the system.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.h"

namespace ktops {

constexpr uint32_t kMaxNodes = 64;
constexpr size_t kNodeRows = 32; // where the jobs of every kernel may be cut

// A page belongs to one node: with less than half a huge page each, the wrong rows would come along
// with the right ones.
constexpr size_t kMinNodeBytes = kHugePageBytes / 2;

// The first row of node `node`; with node = num_nodes the end of all.
inline size_t first_row_of(size_t node, size_t rows, size_t num_nodes) {
  return node == num_nodes ? rows : rows * node / num_nodes / kNodeRows * kNodeRows;
}

inline size_t node_of_row(size_t row, size_t rows, size_t num_nodes) {
  size_t node = 0;
  while (row >= first_row_of(node + 1, rows, num_nodes))
    ++node;
  return node;
}

// Over how many of the nodes the rows of a matrix are shared out: all of them, or 1 where its pages
// lie on the nodes by turns.
inline uint32_t nodes_of_rows(size_t rows, size_t row_bytes, uint32_t num_nodes) {
  return rows * row_bytes / num_nodes >= kMinNodeBytes ? num_nodes : 1;
}

// The rows of some matrices of one shape cut into jobs, those of a node one after another.
class RowJobs {
 public:
  struct Job {
    size_t matrix, first_row, last_row;
  };

  // job_rows: a multiple of kPanelRows, or of kNodeRows where that matters to the caller.
  RowJobs(size_t rows, size_t job_rows, size_t num_matrices, uint32_t num_nodes);

  uint32_t num_nodes() const { return num_nodes_; }
  size_t count() const { return ends_[num_nodes_ - 1]; }
  // The jobs [start, end) are those of a node.
  size_t start(uint32_t node) const { return node == 0 ? 0 : ends_[node - 1]; }
  size_t end(uint32_t node) const { return ends_[node]; }
  Job job(size_t index) const;
  // [nodes]: where the jobs of each end; null when the rows belong to nobody in particular.
  const size_t* node_ends() const { return num_nodes_ == 1 ? nullptr : ends_; }
  // The jobs of the same rows have the same number in each matrix, below num_parts().
  size_t part(size_t index) const;
  size_t num_parts() const { return num_matrices_ == 0 ? 0 : count() / num_matrices_; }

 private:
  uint32_t node_of(size_t index) const {
    uint32_t node = 0;
    while (index >= ends_[node])
      ++node;
    return node;
  }

  size_t rows_, job_rows_, num_matrices_;
  uint32_t num_nodes_;
  size_t ends_[kMaxNodes];
};

} // namespace ktops
