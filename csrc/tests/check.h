// The smallest test harness that says what failed and where.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "../src/pool.h"
#include "ktops.h"

namespace testing {

inline int num_failures = 0;

#define CHECK(condition, ...)                                                                      \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      ++testing::num_failures;                                                                     \
      printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);                                       \
      printf(__VA_ARGS__);                                                                         \
      printf("\n");                                                                                \
    }                                                                                              \
  } while (false)

inline int result() {
  printf(num_failures == 0 ? "passed\n" : "%d checks failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}

constexpr int kSkipped = 77;

// Makes new pools use that instruction set; false when the machine cannot run it.
inline bool choose_isa(const char* name) {
  setenv("KTOPS_ISA", name, 1);
  const char* chosen = nullptr;
  return ktops_isa(&chosen) == KTOPS_OK && strcmp(chosen, name) == 0;
}

class TestPool {
 public:
  explicit TestPool(uint32_t num_threads) {
    std::vector<int32_t> cpus;
    for (uint32_t i = 0; i < num_threads; ++i)
      cpus.push_back(static_cast<int32_t>(i)); // beyond the machine's: runs unpinned
    const int32_t status = ktops_pool_create(cpus.data(), num_threads, &pool_);
    CHECK(status == KTOPS_OK, "%s", ktops_status_string(status));
  }
  ~TestPool() { ktops_pool_destroy(pool_); }
  TestPool(const TestPool&) = delete;
  TestPool& operator=(const TestPool&) = delete;
  operator ktops_pool*() const { return pool_; }
  ktops_pool* operator->() const { return pool_; }

 private:
  ktops_pool* pool_ = nullptr;
};

// A copy of some bytes that ends right before memory nobody may touch.
class Guarded {
 public:
  Guarded(const void* source, size_t num_bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (num_bytes + page - 1) / page * page;
    mapped_bytes_ = used + page;
    mapped_ = static_cast<uint8_t*>(
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(mapped_ + used, page, PROT_NONE);
    start_ = mapped_ + used - num_bytes;
    if (num_bytes != 0)
      memcpy(start_, source, num_bytes);
  }
  ~Guarded() { munmap(mapped_, mapped_bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  const void* data() const { return start_; }
  const float* floats() const { return reinterpret_cast<const float*>(start_); }

 private:
  uint8_t *mapped_, *start_;
  size_t mapped_bytes_;
};

// Floats between two runs of guard values.
class Output {
 public:
  explicit Output(size_t count) : values_(count + 2 * kGuards, kGuard) {}
  float* data() { return values_.data() + kGuards; }
  size_t size() const { return values_.size() - 2 * kGuards; }
  float operator[](size_t i) const { return values_[kGuards + i]; }
  bool guards_hold() const {
    for (size_t i = 0; i < kGuards; ++i)
      if (values_[i] != kGuard || values_[values_.size() - 1 - i] != kGuard)
        return false;
    return true;
  }

 private:
  static constexpr size_t kGuards = 64;
  static constexpr float kGuard = -12345.5f;
  std::vector<float> values_;
};

// Whether products of quantised weights with so many tokens each are made of bfloat16 numbers.
inline bool in_bf16(ktops_pool* pool, uint32_t type, size_t num_tokens) {
  uint32_t block_size = 0, block_bytes = 0;
  ktops_type_block(type, &block_size, &block_bytes);
  const ktops::GemmKernels* gemm = pool->kernels().gemm;
  return gemm != nullptr && block_size > 1 && num_tokens >= gemm->min_tokens;
}

inline double relative_error(const float* found, const double* expected, size_t count) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    const double error = static_cast<double>(found[i]) - expected[i];
    difference += error * error;
    norm += expected[i] * expected[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

inline std::vector<float> dequantized(uint32_t type, const std::vector<uint8_t>& bytes,
                                      size_t count) {
  std::vector<float> values(count);
  CHECK(ktops_dequantize(type, bytes.data(), values.data(), count) == KTOPS_OK, "type %u", type);
  return values;
}

// A matrix's bytes in a layout, from those of the file's.
inline std::vector<uint8_t> laid_out(ktops_pool* pool, ktops_matrix matrix,
                                     const std::vector<uint8_t>& source) {
  std::vector<uint8_t> target(source.size(), 0xEE);
  const Guarded guarded(source.data(), source.size());
  matrix.data = target.data();
  const int32_t status = ktops_pack(pool, &matrix, guarded.data());
  CHECK(status == KTOPS_OK, "packing type %u: %s", matrix.type, ktops_status_string(status));
  return target;
}

// x · weightsᵀ in float64: [num_tokens, rows].
inline std::vector<double> reference_matmul(const float* weights, const float* x, size_t num_tokens,
                                            size_t rows, size_t cols) {
  std::vector<double> y(num_tokens * rows);
  for (size_t t = 0; t < num_tokens; ++t)
    for (size_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (size_t c = 0; c < cols; ++c)
        sum += static_cast<double>(weights[r * cols + c]) * static_cast<double>(x[t * cols + c]);
      y[t * rows + r] = sum;
    }
  return y;
}

} // namespace testing
