// Weighted sums of rows of floats: what attention adds up of its cache.
#pragma once

#include "panel.h"

namespace {

using ktops::WeightedRowsArgs;

// kSums sums, from `first` on, of V::kLanes columns from `col` on.
template <class V, int kSums>
KTOPS_INLINE void add_lanes(const WeightedRowsArgs& args, size_t first, size_t col) {
  const float* weights[kSums];
  typename V::F sums[kSums];
#pragma GCC unroll 8
  for (int s = 0; s < kSums; ++s) {
    weights[s] = args.weights + (first + s) * args.weight_stride;
    sums[s] = V::load(args.sums + (first + s) * args.sum_stride + col);
  }
  const float* row = args.rows + col;
  for (size_t r = 0; r < args.num_rows; ++r, row += args.row_stride) {
    const auto values = V::as_float(V::load_words(reinterpret_cast<const uint8_t*>(row)));
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s)
      sums[s] = V::fma(V::set(weights[s][r]), values, sums[s]);
  }
#pragma GCC unroll 8
  for (int s = 0; s < kSums; ++s)
    V::store(args.sums + (first + s) * args.sum_stride + col, sums[s]);
}

// A column beyond the last whole register.
inline void add_column(const WeightedRowsArgs& args, size_t s, size_t col) {
  float sum = args.sums[s * args.sum_stride + col];
  for (size_t r = 0; r < args.num_rows; ++r)
    sum += args.weights[s * args.weight_stride + r] * args.rows[r * args.row_stride + col];
  args.sums[s * args.sum_stride + col] = sum;
}

template <class V> void add_weighted_rows(const WeightedRowsArgs& args) {
  size_t col = 0;
  for (; col + V::kLanes <= args.cols; col += V::kLanes) {
    size_t s = 0;
    for (; s + 8 <= args.num_sums; s += 8)
      add_lanes<V, 8>(args, s, col);
    for (; s < args.num_sums; ++s)
      add_lanes<V, 1>(args, s, col);
  }
  for (; col < args.cols; ++col)
    for (size_t s = 0; s < args.num_sums; ++s)
      add_column(args, s, col);
}

} // namespace
