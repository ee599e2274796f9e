// Random weights that are valid blocks of a type, and random activations.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "ktops.h"

namespace testing {

constexpr uint32_t kAllTypes[] = {KTOPS_TYPE_F32,  KTOPS_TYPE_F16,  KTOPS_TYPE_Q4_0,
                                  KTOPS_TYPE_Q5_0, KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q4_K,
                                  KTOPS_TYPE_Q5_K, KTOPS_TYPE_Q6_K, KTOPS_TYPE_BF16};

inline const char* type_name(uint32_t type) {
  switch (type) {
  case KTOPS_TYPE_F32:
    return "F32";
  case KTOPS_TYPE_F16:
    return "F16";
  case KTOPS_TYPE_Q4_0:
    return "Q4_0";
  case KTOPS_TYPE_Q5_0:
    return "Q5_0";
  case KTOPS_TYPE_Q8_0:
    return "Q8_0";
  case KTOPS_TYPE_Q4_K:
    return "Q4_K";
  case KTOPS_TYPE_Q5_K:
    return "Q5_K";
  case KTOPS_TYPE_Q6_K:
    return "Q6_K";
  case KTOPS_TYPE_BF16:
    return "BF16";
  default:
    return "?";
  }
}

struct Block {
  uint32_t size = 0, bytes = 0;
};

inline Block block_of(uint32_t type) {
  Block block;
  ktops_type_block(type, &block.size, &block.bytes);
  return block;
}

// A float16 of random sign bit `sign`, magnitude 2^exponent * [1, 2).
inline uint16_t random_half(std::mt19937& random, int exponent, bool sign) {
  const auto mantissa = static_cast<uint16_t>(random() & 1023);
  return static_cast<uint16_t>((sign && (random() & 1) ? 0x8000 : 0) | (exponent + 15) << 10 |
                               mantissa);
}

inline void put_half(uint8_t* at, uint16_t half) { memcpy(at, &half, sizeof half); }

// `count` weights of a type. All bits of quantised blocks are random but those of the float16
// scales, which are kept small and finite.
inline std::vector<uint8_t> random_weights(std::mt19937& random, uint32_t type, size_t count) {
  const Block block = block_of(type);
  std::vector<uint8_t> bytes(count / block.size * block.bytes);
  for (uint8_t& byte : bytes)
    byte = static_cast<uint8_t>(random());
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < bytes.size() / block.bytes; ++i) {
    uint8_t* at = bytes.data() + i * block.bytes;
    switch (type) {
    case KTOPS_TYPE_F32: {
      const float value = normal(random);
      memcpy(at, &value, sizeof value);
      break;
    }
    case KTOPS_TYPE_F16:
      put_half(at, random_half(random, static_cast<int>(random() % 8) - 6, true));
      break;
    case KTOPS_TYPE_BF16: {
      const float value = normal(random);
      memcpy(at, reinterpret_cast<const char*>(&value) + 2, 2);
      break;
    }
    case KTOPS_TYPE_Q4_K:
    case KTOPS_TYPE_Q5_K:
      put_half(at + 2, random_half(random, -8, true));
      [[fallthrough]];
    case KTOPS_TYPE_Q4_0:
    case KTOPS_TYPE_Q5_0:
    case KTOPS_TYPE_Q8_0:
      put_half(at, random_half(random, -8, true));
      break;
    case KTOPS_TYPE_Q6_K:
      put_half(at + 208, random_half(random, -8, true));
      break;
    }
  }
  return bytes;
}

inline std::vector<float> random_floats(std::mt19937& random, size_t count, float scale = 1) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values)
    value = scale * normal(random);
  return values;
}

} // namespace testing
