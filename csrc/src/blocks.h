// The GGUF block formats: bytes on disk, in memory and in the kernels are the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ktops.h"

namespace ktops {

// d * (q - 8); low nibbles are weights 0..15, high nibbles 16..31.
struct BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];
};
// d * (q - 16); nibbles as in Q4_0, the fifth bit of weight i is bit i of qh.
struct BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
// d * q
struct BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
// d * scale * q - dmin * min, eight sub-blocks of 32. Scales and mins have six bits, packed in 12
// bytes. 32 bytes of qs hold two sub-blocks: low nibbles the first, high nibbles the second.
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
// As Q4_K; bit j of qh[i] is the fifth bit of weight i of sub-block j.
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
// d * scale * (q - 32), sixteen sub-blocks of 16. In each half of 128 weights, ql[i] holds the low
// bits of weights i and i + 64 and qh[i] the two high bits of weights i, i + 32, i + 64, i + 96.
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

struct TypeInfo {
  uint32_t block_size;  // weights
  uint32_t block_bytes; // 0: not a type we know
};

constexpr uint32_t kNumTypes = 31;

constexpr TypeInfo type_info(uint32_t type) {
  switch (type) {
  case KTOPS_TYPE_F32:
    return {1, 4};
  case KTOPS_TYPE_F16:
  case KTOPS_TYPE_BF16:
    return {1, 2};
  case KTOPS_TYPE_Q4_0:
    return {32, sizeof(BlockQ4_0)};
  case KTOPS_TYPE_Q5_0:
    return {32, sizeof(BlockQ5_0)};
  case KTOPS_TYPE_Q8_0:
    return {32, sizeof(BlockQ8_0)};
  case KTOPS_TYPE_Q4_K:
    return {256, sizeof(BlockQ4_K)};
  case KTOPS_TYPE_Q5_K:
    return {256, sizeof(BlockQ5_K)};
  case KTOPS_TYPE_Q6_K:
    return {256, sizeof(BlockQ6_K)};
  default:
    return {0, 0};
  }
}

// Of a matrix of a known type whose columns are whole blocks; the same in every layout.
constexpr size_t bytes_of_row(const ktops_matrix& matrix) {
  const TypeInfo info = type_info(matrix.type);
  return matrix.cols / info.block_size * info.block_bytes;
}

} // namespace ktops
