// One row at a time in plain C++: runs anywhere, and shows what the vector types must do.
#pragma once

#include <cstdint>
#include <cstring>

#include "../half.h"
#include "rounding.h"

namespace {

struct Scalar {
  static constexpr uint32_t kLanes = 1;
  static constexpr uint32_t kTokenStep = 2; // whose sums fit in the registers beside the weights
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

  // Adds to each of kCount sums the products of four words of bytes, unsigned weights 0 to kMax
  // times signed ones.
  template <int, int kCount> static void dots(I* sums, const I* w, const int32_t* const* x) {
    for (int c = 0; c < kCount; ++c)
      sums[c] += dot(w, x[c]);
  }
  static I dot(const I* w, const int32_t* x) {
    I acc = 0;
    for (int i = 0; i < 16; ++i) {
      const int shift = 8 * (i % 4);
      const auto signed_byte = static_cast<int8_t>(static_cast<I>(x[i / 4]) >> shift);
      acc += (w[i / 4] >> shift & 0xFF) * static_cast<I>(signed_byte);
    }
    return acc;
  }
  // kAdded to the bytes of w whose bit in the four bits of group `four` is set.
  template <int kAdded> static I add_bits(I w, I bits, int four) {
    for (int i = 0; i < 4; ++i)
      w += (bits >> (4 * four + i) & 1) * kAdded << (8 * i);
    return w;
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

  // The largest |value| of four groups of 32, compared as bits: a NaN is larger than an infinity.
  static void largest_magnitudes(const float* const* groups, float* peaks) {
    for (int g = 0; g < 4; ++g) {
      uint32_t largest = 0;
      for (int i = 0; i < 32; ++i) {
        const uint32_t magnitude = float_bits(groups[g][i]) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
      }
      peaks[g] = bits_float(largest);
    }
  }
  // Four groups of 32 values times their inverse, as integers of 16 bits: the high bytes, rounded,
  // then the low ones into a line of 64 bytes; and the sums of both halves of each group.
  static void store_integers(const float* const* groups, const float* inverses,
                             uint8_t* const* lines, int32_t (*half_sums)[4]) {
    for (int g = 0; g < 4; ++g) {
      int16_t q[32];
      for (int i = 0; i < 32; ++i)
        q[i] = static_cast<int16_t>(float_bits(groups[g][i] * inverses[g] + kRounder) & 0xFFFFu);
      int32_t first = 0, last = 0;
      for (int i = 0; i < 16; ++i) {
        first += q[i];
        last += q[16 + i];
      }
      half_sums[0][g] = first;
      half_sums[1][g] = last;
      for (int i = 0; i < 32; ++i) {
        lines[g][i] = static_cast<uint8_t>((q[i] + 128) >> 8);
        lines[g][32 + i] = static_cast<uint8_t>(q[i] & 0xFF);
      }
    }
  }
};

} // namespace
