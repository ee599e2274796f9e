// Floats to integers by one addition, the same on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits of the sum.
constexpr float kRounder = 12582912.0f;

} // namespace
