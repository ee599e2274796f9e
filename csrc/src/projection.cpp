#include "projection.h"

#include <algorithm>
#include <cstring>

namespace ktops {

void multiply_rows(const WeightRows& weights, const Activations& activations,
                   const RowsProduct& product) {
  alignas(64) float out[kMaxTileTokens * kPanelRows];
  const void* records[kMaxTileTokens];
  const size_t max_tokens = tile_tokens(activations.record_bytes());
  for (size_t token = 0; token < product.num_tokens; token += max_tokens) {
    const auto num_tokens = static_cast<uint32_t>(std::min(max_tokens, product.num_tokens - token));
    for (uint32_t t = 0; t < num_tokens; ++t)
      records[t] = activations.record(product.first_record + token + t);
    for (size_t row = product.first_row; row < product.last_row; row += kPanelRows) {
      const auto num_rows =
          static_cast<uint32_t>(std::min<size_t>(kPanelRows, product.last_row - row));
      const bool is_last = row + num_rows == product.last_row;
      multiply_panel(weights, row, num_rows, is_last ? product.next : weights.row(row + num_rows),
                     records, num_tokens, out);
      for (uint32_t t = 0; t < num_tokens; ++t)
        memcpy(product.y + (token + t) * product.y_stride + row, out + t * kPanelRows,
               num_rows * sizeof(float));
    }
  }
}

void prefetch_rows(const WeightRows& weights, size_t first_row, size_t last_row, size_t n) {
  const size_t num_bytes = (last_row - first_row) * weights.row_bytes;
  if (n >= kMostPrepared || n * kPreparedBytes >= num_bytes)
    return;
  const uint8_t* data = weights.row(first_row) + n * kPreparedBytes;
  for (size_t i = 0; i < kPreparedBytes; i += kLineBytes)
    __builtin_prefetch(data + i, 0, 2);
}

Projection::Projection(const ktops_matrix& matrix, size_t num_tokens, const ktops_pool& pool)
    : weights_(weight_rows(matrix, 0, pool.kernels())), num_tokens_(num_tokens),
      jobs_(weights_.rows,
            rows_per_job(weights_.rows, weights_.row_bytes, num_tokens, kPanelRows,
                         pool.num_threads()),
            1, nodes_of_rows(weights_.rows, weights_.row_bytes, pool.num_nodes())) {}

void Projection::run(size_t index, const Activations& activations, float* y) const {
  const RowJobs::Job own = job(index);
  multiply_rows(
      weights_, activations,
      {own.first_row, own.last_row, weights_.row(own.last_row), 0, num_tokens_, y, weights_.rows});
}

void Projection::prefetch(size_t index, size_t n) const {
  const RowJobs::Job own = job(index);
  prefetch_rows(weights_, own.first_row, own.last_row, n);
}

ProjectionPair::ProjectionPair(const Projection& first, const Projection& second)
    : first_(first), second_(second), num_nodes_(std::max(first.num_nodes(), second.num_nodes())) {
  for (uint32_t node = 0; node < num_nodes_; ++node)
    ends_[node] = first.end(node) + second.end(node);
}

ProjectionPair::Job ProjectionPair::job(size_t index) const {
  uint32_t node = 0;
  while (index >= ends_[node])
    ++node;
  // Before the node's own there are the jobs of the nodes before it, of both.
  const size_t second_start = node == 0 ? 0 : second_.end(node - 1);
  if (index - second_start < first_.end(node))
    return {false, index - second_start};
  return {true, index - first_.end(node)};
}

} // namespace ktops
