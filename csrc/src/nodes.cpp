#include "nodes.h"

#include <algorithm>

namespace ktops {

RowJobs::RowJobs(size_t rows, size_t job_rows, size_t num_matrices, uint32_t num_nodes)
    : rows_(rows), job_rows_(job_rows), num_matrices_(num_matrices), num_nodes_(num_nodes) {
  size_t end = 0;
  for (uint32_t node = 0; node < num_nodes; ++node) {
    const size_t own =
        first_row_of(node + 1, rows, num_nodes) - first_row_of(node, rows, num_nodes);
    end += (own + job_rows - 1) / job_rows * num_matrices;
    ends_[node] = end;
  }
}

RowJobs::Job RowJobs::job(size_t index) const {
  const uint32_t node = node_of(index);
  const size_t local = index - start(node), each = (end(node) - start(node)) / num_matrices_;
  const size_t row = first_row_of(node, rows_, num_nodes_) + local % each * job_rows_;
  return {local / each, row, std::min(row + job_rows_, first_row_of(node + 1, rows_, num_nodes_))};
}

size_t RowJobs::part(size_t index) const {
  const uint32_t node = node_of(index);
  const size_t each = (end(node) - start(node)) / num_matrices_;
  return start(node) / num_matrices_ + (index - start(node)) % each;
}

} // namespace ktops
