// One row at a time in plain C++: runs anywhere, and shows what the vector types must do.
#pragma once

#include <cstdint>
#include <cstring>

#include "../half.h"

namespace {

struct Scalar {
  static constexpr uint32_t kLanes = 1;
  using I = uint32_t;
  using F = float;

  static I zero() { return 0; }
  static I set(uint32_t value) { return value; }
  static F set(float value) { return value; }
  static I and_(I a, I b) { return a & b; }
  static I xor_(I a, I b) { return a ^ b; }
  static I or_and(I a, I b, I mask) { return a | (b & mask); }
  static I srl(I a, int n) { return a >> n; }
  static I sll(I a, int n) { return a << n; }
  static I sra(I a, int n) { return static_cast<I>(static_cast<int32_t>(a) >> n); }
  static I add(I a, I b) { return a + b; }
  static I mul(I a, I b) { return a * b; }
  static int32_t low(I a) { return static_cast<int16_t>(a & 0xFFFF); }
  static int32_t high(I a) { return static_cast<int16_t>(a >> 16); }

  // Subtracts from both 16-bit halves.
  static I sub_halves(I a, int16_t n) {
    return (static_cast<I>(low(a) - n) & 0xFFFF) | (static_cast<I>(high(a) - n) << 16);
  }
  static I sra_halves(I a, int n) {
    return (static_cast<I>(low(a) >> n) & 0xFFFF) | (static_cast<I>(high(a) >> n) << 16);
  }
  // acc + the products of the two 16-bit halves.
  static I dot(I acc, I w, int32_t x) {
    const I pair = static_cast<I>(x);
    return acc + static_cast<I>(low(w) * low(pair)) + static_cast<I>(high(w) * high(pair));
  }

  static F to_float(I a) { return static_cast<float>(static_cast<int32_t>(a)); }
  static F as_float(I a) {
    F value;
    memcpy(&value, &a, sizeof value);
    return value;
  }
  static F half_low(I a) { return ktops::half_to_float(static_cast<uint16_t>(a & 0xFFFF)); }
  static F half_high(I a) { return ktops::half_to_float(static_cast<uint16_t>(a >> 16)); }
  static F add(F a, F b) { return a + b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F fnma(F a, F b, F c) { return c - a * b; }
  static F load(const float* p) { return *p; }
  static void store(float* p, F value) { *p = value; }

  // The lanes' words or float16 halves from consecutive memory, and words back there.
  static I load_words(const uint8_t* p) {
    I word;
    memcpy(&word, p, sizeof word);
    return word;
  }
  static void store_words(uint8_t* p, I value) { memcpy(p, &value, sizeof value); }
  static F load_halves(const uint8_t* p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return ktops::half_to_float(half);
  }

  // Four or eight 32-bit words from each row, word i of all rows in out[i].
  static void load4(const uint8_t* const* rows, size_t offset, I* out) {
    memcpy(out, rows[0] + offset, 16);
  }
  static void load8(const uint8_t* const* rows, size_t offset, I* out) {
    memcpy(out, rows[0] + offset, 32);
  }
  static I word_at(const uint8_t* const* rows, size_t offset) {
    I word;
    memcpy(&word, rows[0] + offset, sizeof word);
    return word;
  }
  static F half_at(const uint8_t* const* rows, size_t offset) {
    uint16_t half;
    memcpy(&half, rows[0] + offset, sizeof half);
    return ktops::half_to_float(half);
  }
};

} // namespace
