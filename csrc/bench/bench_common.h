// What the benchmarks share: the clock on the wall, medians, and a projection of all experts.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "../tests/random_blocks.h"

inline double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One projection of all experts; the experts hold the same random blocks, in memory of their own.
struct Projection {
  ktops_buffer buffer;
  ktops_matrix matrix;

  Projection(ktops_pool* pool, uint32_t type, size_t rows, size_t cols, uint32_t num_experts,
             uint32_t layout) {
    std::mt19937 random(type + 1);
    const std::vector<uint8_t> expert = testing::random_weights(random, type, rows * cols);
    if (ktops_alloc(expert.size() * num_experts, &buffer) != KTOPS_OK)
      exit(1);
    for (uint32_t e = 0; e < num_experts; ++e) {
      matrix = {address() + e * expert.size(), rows, cols, type, layout, 1, 0};
      ktops_pack(pool, &matrix, expert.data());
    }
    matrix.data = address();
    matrix.num_experts = num_experts;
  }
  ~Projection() { ktops_free(&buffer); }
  Projection(const Projection&) = delete;
  Projection& operator=(const Projection&) = delete;

  uint8_t* address() const { return static_cast<uint8_t*>(buffer.address); }
  size_t expert_bytes() const { return buffer.num_bytes / matrix.num_experts; }
};
