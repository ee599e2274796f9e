// float16 to float32 without hardware help. Internal linkage: units for different instruction sets
// must not share one compiled copy.
#pragma once

#include <cstdint>
#include <cstring>

namespace ktops {

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  uint32_t bits = magnitude << 13;
  float value;
  if (magnitude >= 0x7C00u) { // infinity, NaN
    bits |= 0x7F800000u;
    memcpy(&value, &bits, sizeof value);
  } else { // the product also turns a subnormal half into a normal float
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
  }
  memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
}

} // namespace ktops
