// Sixteen rows in 512-bit registers (AVX-512 F, BW, VL, DQ: Skylake-X 2017, Zen 4 2022).
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "rounding.h"

namespace {

struct Avx512 {
  static constexpr uint32_t kLanes = 16;
  static constexpr uint32_t kTokenStep = 4; // whose sums fit in the registers beside the weights
  using I = __m512i;
  using F = __m512;

  static I zero() { return _mm512_setzero_si512(); }
  static I set(uint32_t value) { return _mm512_set1_epi32(static_cast<int32_t>(value)); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static I and_(I a, I b) { return _mm512_and_si512(a, b); }
  static I xor_(I a, I b) { return _mm512_xor_si512(a, b); }
  static I or_and(I a, I b, I mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xF8); }
  static I srl(I a, int n) { return _mm512_srli_epi32(a, static_cast<unsigned>(n)); }
  static I sll(I a, int n) { return _mm512_slli_epi32(a, static_cast<unsigned>(n)); }
  static I sra(I a, int n) { return _mm512_srai_epi32(a, static_cast<unsigned>(n)); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }

  // Adds to each of kCount sums the products of four words of bytes, unsigned weights 0 to kMax
  // times signed ones.
  template <int kMax, int kCount> static void dots(I* sums, const I* w, const int32_t* const* x) {
    for (int c = 0; c < kCount; ++c)
      sums[c] = dot<kMax>(sums[c], w, x[c]);
  }
  // Sums of two products have 16 bits and must not saturate: a weight of eight bits is taken apart,
  // several sums of smaller ones are added before they become 32 bits wide.
  template <int kMax> static I dot(I acc, const I* w, const int32_t* x) {
    const I ones = _mm512_set1_epi16(1);
    if constexpr (kMax > 127) {
      for (int i = 0; i < 4; ++i) {
        const I last = _mm512_and_si512(w[i], _mm512_set1_epi8(1));
        const I rest = _mm512_and_si512(_mm512_srli_epi16(w[i], 1), _mm512_set1_epi8(127));
        acc = add(acc, _mm512_madd_epi16(pairs(last, x[i]), ones));
        acc = add(acc, _mm512_madd_epi16(pairs(rest, x[i]), _mm512_set1_epi16(2)));
      }
      return acc;
    }
    const I first = _mm512_add_epi16(pairs(w[0], x[0]), pairs(w[1], x[1]));
    const I second = _mm512_add_epi16(pairs(w[2], x[2]), pairs(w[3], x[3]));
    if constexpr (kMax <= 31)
      return add(acc, _mm512_madd_epi16(_mm512_add_epi16(first, second), ones));
    return add(add(acc, _mm512_madd_epi16(first, ones)), _mm512_madd_epi16(second, ones));
  }
  // kAdded to the bytes of w whose bit in the four bits of group `four` is set.
  template <int kAdded> static I add_bits(I w, I bits, int four) {
    const I words = _mm512_broadcast_i32x4(_mm_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0));
    const I which = _mm512_add_epi8(words, _mm512_set1_epi8(static_cast<char>(four / 2)));
    const I bytes = _mm512_shuffle_epi8(bits, which);
    const I wanted = _mm512_set1_epi32(four % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010));
    return _mm512_mask_add_epi8(w, _mm512_test_epi8_mask(bytes, wanted), w,
                                _mm512_set1_epi8(kAdded));
  }

  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static F as_float(I a) { return _mm512_castsi512_ps(a); }
  static F half_low(I a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  static F half_high(I a) { return half_low(_mm512_srli_epi32(a, 16)); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, F value) { _mm512_store_ps(p, value); }

  // The lanes' words or float16 halves from consecutive memory, and words back there.
  static I load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_words(uint8_t* p, I value) { _mm512_storeu_si512(p, value); }
  static F load_halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  static void load4(const uint8_t* const* rows, size_t offset, I* out) {
    transpose_4x4(four_rows(rows, offset), four_rows(rows + 1, offset), four_rows(rows + 2, offset),
                  four_rows(rows + 3, offset), out);
  }
  static void load8(const uint8_t* const* rows, size_t offset, I* out) {
    I upper[4], lower[4]; // words i and i + 4 of rows 0..7, of rows 8..15
    transpose_4x4(two_rows(rows, offset), two_rows(rows + 1, offset), two_rows(rows + 2, offset),
                  two_rows(rows + 3, offset), upper);
    transpose_4x4(two_rows(rows + 8, offset), two_rows(rows + 9, offset),
                  two_rows(rows + 10, offset), two_rows(rows + 11, offset), lower);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      out[i] = _mm512_shuffle_i32x4(upper[i], lower[i], _MM_SHUFFLE(2, 0, 2, 0));
      out[4 + i] = _mm512_shuffle_i32x4(upper[i], lower[i], _MM_SHUFFLE(3, 1, 3, 1));
    }
  }
  static I word_at(const uint8_t* const* rows, size_t offset) {
    alignas(64) uint32_t words[kLanes];
    for (uint32_t i = 0; i < kLanes; ++i)
      memcpy(words + i, rows[i] + offset, sizeof *words);
    return _mm512_load_si512(words);
  }
  static F half_at(const uint8_t* const* rows, size_t offset) {
    const __m256i low = _mm256_castsi128_si256(eight_halves(rows, offset));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(low, eight_halves(rows + 8, offset), 1));
  }

  static void largest_magnitudes(const float* const* groups, float* peaks) {
    I largest[4];
    for (int g = 0; g < 4; ++g)
      largest[g] = _mm512_max_epi32(magnitudes(groups[g]), magnitudes(groups[g] + 16));
    const auto max = [](auto a, auto b) {
      if constexpr (sizeof a == 64)
        return _mm512_max_epi32(a, b);
      else
        return _mm_max_epi32(a, b);
    };
    _mm_storeu_ps(peaks, _mm_castsi128_ps(fold(largest, max)));
  }
  static void store_integers(const float* const* groups, const float* inverses,
                             uint8_t* const* lines, int32_t (*half_sums)[4]) {
    // From [4 high bytes, 4 low bytes, ...] in each 128 bits to all high ones, all low ones.
    const I order = _mm512_set_epi32(29, 25, 21, 17, 13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    I q[2][4];
    for (int g = 0; g < 4; ++g) {
      q[0][g] = rounded(groups[g], inverses[g]);
      q[1][g] = rounded(groups[g] + 16, inverses[g]);
      _mm512_storeu_si512(lines[g],
                          _mm512_permutex2var_epi32(bytes(q[0][g]), order, bytes(q[1][g])));
    }
    const auto sum = [](auto a, auto b) {
      if constexpr (sizeof a == 64)
        return _mm512_add_epi32(a, b);
      else
        return _mm_add_epi32(a, b);
    };
    // Modulo 2^32 the bits of the rounder can be taken off after adding up.
    const __m128i bias = _mm_set1_epi32(static_cast<int32_t>(float_bits(kRounder) * 16));
    for (int h = 0; h < 2; ++h)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(half_sums[h]),
                       _mm_sub_epi32(fold(q[h], sum), bias));
  }

 private:
  static I magnitudes(const float* x) {
    return _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  }
  // All words of each of four registers brought together by `op`.
  template <class Op> static __m128i fold(const I* four, const Op& op) {
    const I ab =
        op(_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[0], four[1]));
    const I cd =
        op(_mm512_unpacklo_epi32(four[2], four[3]), _mm512_unpackhi_epi32(four[2], four[3]));
    const I all = op(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    return op(op(_mm512_castsi512_si128(all), _mm512_extracti32x4_epi32(all, 1)),
              op(_mm512_extracti32x4_epi32(all, 2), _mm512_extracti32x4_epi32(all, 3)));
  }
  static I rounded(const float* x, float inverse) {
    const F product = _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse));
    return _mm512_castps_si512(_mm512_add_ps(product, _mm512_set1_ps(kRounder)));
  }
  // The high bytes, rounded, and the low ones of four words in the first two of each lane.
  static I bytes(I q) {
    const I high = _mm512_add_epi32(q, _mm512_set1_epi32(128));
    const I both = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xFF), q, high, 0xCA);
    return _mm512_shuffle_epi8(both,
                               _mm512_broadcast_i32x4(_mm_set_epi32(0, 0, 0x0C080400, 0x0D090501)));
  }
  static I pairs(I w, int32_t x) { return _mm512_maddubs_epi16(w, _mm512_set1_epi32(x)); }
  static __m128i row(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  // 16 bytes of rows 0, 4, 8 and 12, side by side.
  static I four_rows(const uint8_t* const* rows, size_t offset) {
    I four = _mm512_castsi128_si512(row(rows[0] + offset));
    four = _mm512_mask_broadcast_i32x4(four, 0x00F0, row(rows[4] + offset));
    four = _mm512_mask_broadcast_i32x4(four, 0x0F00, row(rows[8] + offset));
    return _mm512_mask_broadcast_i32x4(four, 0xF000, row(rows[12] + offset));
  }
  // 32 bytes of rows 0 and 4, side by side.
  static I two_rows(const uint8_t* const* rows, size_t offset) {
    const I first = _mm512_castsi256_si512(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[0] + offset)));
    return _mm512_inserti64x4(
        first, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[4] + offset)), 1);
  }
  // In each of the four lanes: word i of a, b, c, d to out[i].
  static void transpose_4x4(I a, I b, I c, I d, I* out) {
    const I ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const I cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    out[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    out[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    out[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
  }
  static int16_t half_bits(const uint8_t* p) {
    int16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
  }
  static __m128i eight_halves(const uint8_t* const* rows, size_t offset) {
    __m128i halves = _mm_cvtsi32_si128(half_bits(rows[0] + offset));
    halves = _mm_insert_epi16(halves, half_bits(rows[1] + offset), 1);
    halves = _mm_insert_epi16(halves, half_bits(rows[2] + offset), 2);
    halves = _mm_insert_epi16(halves, half_bits(rows[3] + offset), 3);
    halves = _mm_insert_epi16(halves, half_bits(rows[4] + offset), 4);
    halves = _mm_insert_epi16(halves, half_bits(rows[5] + offset), 5);
    halves = _mm_insert_epi16(halves, half_bits(rows[6] + offset), 6);
    return _mm_insert_epi16(halves, half_bits(rows[7] + offset), 7);
  }
};

} // namespace
