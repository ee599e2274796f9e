// How a product of a matrix and many tokens is cut into pieces.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_table.h"
#include "nodes.h"

namespace ktops {

// One weight matrix of a ktops_matrix, ready for the panel kernels.
struct WeightRows {
  const uint8_t* data;
  size_t row_bytes;
  size_t rows;
  size_t cols;
  void (*row_panel)(const PanelArgs&);
  void (*packed_panel)(const PanelArgs&); // null: all rows are in the file's layout

  const uint8_t* row(size_t index) const { return data + index * row_bytes; }
};

WeightRows weight_rows(const ktops_matrix& matrix, size_t expert, const KernelTable& kernels);

inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

// Tokens whose records of that size stay in cache while panels pass by.
uint32_t tile_tokens(size_t record_bytes);

// Rows a job takes: a multiple of `step`, so that there are several jobs for each thread to even
// out its speed, each long enough to be worth fetching.
size_t rows_per_job(size_t rows, size_t row_bytes, size_t num_tokens, size_t step,
                    size_t num_threads);

// Whether waking the pool costs more than it saves, for `weight_bytes` read once and `products`
// multiplications.
bool is_small_job(double weight_bytes, double products);

// num_rows rows from first_row on, a multiple of kPanelRows, times the tokens of a tile, into out:
// [num_tokens, kPanelRows]. `next` is what the caller reads then.
inline void multiply_panel(const WeightRows& weights, size_t first_row, uint32_t num_rows,
                           const uint8_t* next, const void* const* records, uint32_t num_tokens,
                           float* out) {
  const PanelArgs args{weights.row(first_row),
                       weights.row_bytes,
                       weights.cols,
                       num_rows,
                       num_tokens,
                       next,
                       records,
                       out};
  if (weights.packed_panel != nullptr && num_rows == kPanelRows)
    weights.packed_panel(args);
  else
    weights.row_panel(args);
}

} // namespace ktops
