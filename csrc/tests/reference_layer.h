// What the tests of a decoder layer share: matrices with their values, and the norm in float64.
#pragma once

#include "check.h"
#include "random_blocks.h"

namespace testing {

constexpr float kEps = 1e-6f;
constexpr double kAllowedError = 3e-4;

// A matrix in the packed layout where there is one, and its values.
struct Weight {
  std::vector<uint8_t> bytes;
  std::vector<float> values;
  ktops_matrix matrix{};

  Weight() = default;
  Weight(ktops_pool* pool, std::mt19937& random, uint32_t type, size_t rows, size_t cols,
         uint32_t num_matrices = 1) {
    const size_t count = rows * cols * num_matrices;
    bytes = random_weights(random, type, count);
    values = dequantized(type, bytes, count);
    const bool packed = block_of(type).size > 1;
    const uint32_t layout = packed ? KTOPS_LAYOUT_PANEL16 : KTOPS_LAYOUT_GGUF;
    matrix = {bytes.data(), rows, cols, type, layout, num_matrices, 0};
    if (packed) {
      bytes = laid_out(pool, matrix, bytes);
      matrix.data = bytes.data();
    }
  }
  // [rows] = matrix · x
  std::vector<double> times(const std::vector<double>& x, size_t index = 0) const {
    std::vector<double> y(matrix.rows);
    const float* row = values.data() + index * matrix.rows * matrix.cols;
    for (double& sum : y)
      for (size_t c = 0; c < matrix.cols; ++c)
        sum += static_cast<double>(*row++) * x[c];
    return y;
  }
};

inline std::vector<double> norm(const float* x, const std::vector<float>& weight) {
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double length = std::sqrt(sum / static_cast<double>(weight.size()) + double{kEps});
  std::vector<double> out;
  for (size_t i = 0; i < weight.size(); ++i)
    out.push_back(static_cast<double>(x[i]) / length * static_cast<double>(weight[i]));
  return out;
}

inline std::vector<double> norm(const std::vector<double>& x, const std::vector<float>& weight) {
  const std::vector<float> rounded(x.begin(), x.end());
  return norm(rounded.data(), weight);
}

} // namespace testing
