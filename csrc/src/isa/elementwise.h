// Activations to integers, and SiLU: plain loops that the compiler vectorises.
#pragma once

#include "panel.h"

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

// Below this the scale would leave the range of normal floats; such a group counts as zero.
constexpr float kSmallestMagnitude = 0x1p-111f;

// Multiplication and addition round the same on every instruction set, so all of them see the same
// integers. An infinity or NaN makes the scale one.
inline void quantize(const float* x, size_t num_groups, void* lines, GroupMeta* metas) {
  for (size_t g = 0; g < num_groups; ++g, x += 32) {
    uint32_t largest = 0;
    for (int i = 0; i < 32; ++i) {
      const uint32_t magnitude = float_bits(x[i]) & 0x7FFFFFFFu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float peak = bits_float(largest);
    const float inverse = peak < kSmallestMagnitude ? 0.0f : ktops::kLargestInteger / peak;
    int16_t q[32];
    int8_t line[64];
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < 32; ++i)
      q[i] = static_cast<int16_t>(float_bits(x[i] * inverse + kRounder) & 0xFFFFu);
    for (int i = 0; i < 16; ++i) {
      sums[0] += q[i];
      sums[1] += q[16 + i];
    }
    for (int i = 0; i < 32; ++i) {
      line[i] = static_cast<int8_t>((q[i] + 128) >> 8);
      line[32 + i] = static_cast<int8_t>(q[i] & 0xFF);
    }
    memcpy(static_cast<char*>(lines) + 64 * g, line, sizeof line);
    const float scale = peak < kSmallestMagnitude ? 0.0f : peak / ktops::kLargestInteger;
    const int32_t sum = sums[0] + sums[1];
    metas[g] = {scale, scale * static_cast<float>(sum), -sum, {-sums[0], -sums[1]}};
  }
}

// e^x: 2^n times a polynomial for 2^f, |f| <= 1/2 (Taylor series, relative error below 3e-7).
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float shifted = clamped * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  const float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f; // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return p * bits_float((float_bits(shifted) << 23) + 0x3F800000u);
}

inline void swiglu(const float* gate, const float* up, float* out, size_t count) {
  for (size_t i = 0; i < count; ++i)
    out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

} // namespace
