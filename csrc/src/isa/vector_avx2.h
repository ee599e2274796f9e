// Eight rows in 256-bit registers (AVX2, FMA, F16C: Haswell 2013, Zen 2017).
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "rounding.h"

namespace {

struct Avx2 {
  static constexpr uint32_t kLanes = 8;
  static constexpr uint32_t kTokenStep = 2; // whose sums fit in the registers beside the weights
  using I = __m256i;
  using F = __m256;

  static I zero() { return _mm256_setzero_si256(); }
  static I set(uint32_t value) { return _mm256_set1_epi32(static_cast<int32_t>(value)); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static I and_(I a, I b) { return _mm256_and_si256(a, b); }
  static I xor_(I a, I b) { return _mm256_xor_si256(a, b); }
  static I or_and(I a, I b, I mask) { return _mm256_or_si256(a, _mm256_and_si256(b, mask)); }
  static I srl(I a, int n) { return _mm256_srli_epi32(a, n); }
  static I sll(I a, int n) { return _mm256_slli_epi32(a, n); }
  static I sra(I a, int n) { return _mm256_srai_epi32(a, n); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }

  // Adds to each of kCount sums the products of four words of bytes, unsigned weights 0 to kMax
  // times signed ones.
  template <int kMax, int kCount> static void dots(I* sums, const I* w, const int32_t* const* x) {
    for (int c = 0; c < kCount; ++c)
      sums[c] = dot<kMax>(sums[c], w, x[c]);
  }
  // Sums of two products have 16 bits and must not saturate: a weight of eight bits is taken apart,
  // several sums of smaller ones are added before they become 32 bits wide.
  template <int kMax> static I dot(I acc, const I* w, const int32_t* x) {
    const I ones = _mm256_set1_epi16(1);
    if constexpr (kMax > 127) {
      for (int i = 0; i < 4; ++i) {
        const I last = _mm256_and_si256(w[i], _mm256_set1_epi8(1));
        const I rest = _mm256_and_si256(_mm256_srli_epi16(w[i], 1), _mm256_set1_epi8(127));
        acc = add(acc, _mm256_madd_epi16(pairs(last, x[i]), ones));
        acc = add(acc, _mm256_madd_epi16(pairs(rest, x[i]), _mm256_set1_epi16(2)));
      }
      return acc;
    }
    const I first = _mm256_add_epi16(pairs(w[0], x[0]), pairs(w[1], x[1]));
    const I second = _mm256_add_epi16(pairs(w[2], x[2]), pairs(w[3], x[3]));
    if constexpr (kMax <= 31)
      return add(acc, _mm256_madd_epi16(_mm256_add_epi16(first, second), ones));
    return add(add(acc, _mm256_madd_epi16(first, ones)), _mm256_madd_epi16(second, ones));
  }
  // kAdded to the bytes of w whose bit in the four bits of group `four` is set.
  template <int kAdded> static I add_bits(I w, I bits, int four) {
    const I bytes = _mm256_shuffle_epi8(bits, spread_byte(four / 2));
    const I wanted = _mm256_set1_epi32(four % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010));
    const I is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, wanted), wanted);
    return _mm256_or_si256(w, _mm256_and_si256(is_set, _mm256_set1_epi8(kAdded)));
  }

  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static F as_float(I a) { return _mm256_castsi256_ps(a); }
  static F half_low(I a) {
    const I halves = _mm256_and_si256(a, _mm256_set1_epi32(0xFFFF));
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  }
  static F half_high(I a) { return half_low(_mm256_srli_epi32(a, 16)); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static F load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, F value) { _mm256_store_ps(p, value); }

  static I load_words(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const I*>(p));
  }
  static void store_words(uint8_t* p, I value) {
    _mm256_storeu_si256(reinterpret_cast<I*>(p), value);
  }
  static F load_halves(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  static void load4(const uint8_t* const* rows, size_t offset, I* out) {
    const I a = two_rows(rows, 0, offset), b = two_rows(rows, 1, offset);
    const I c = two_rows(rows, 2, offset), d = two_rows(rows, 3, offset);
    const I ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const I cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    out[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
    out[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
    out[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
    out[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
  }
  static void load8(const uint8_t* const* rows, size_t offset, I* out) {
    load4(rows, offset, out);
    load4(rows, offset + 16, out + 4);
  }
  static I word_at(const uint8_t* const* rows, size_t offset) {
    alignas(32) uint32_t words[kLanes];
    for (uint32_t i = 0; i < kLanes; ++i)
      memcpy(words + i, rows[i] + offset, sizeof *words);
    return _mm256_load_si256(reinterpret_cast<const I*>(words));
  }
  static F half_at(const uint8_t* const* rows, size_t offset) {
    __m128i halves = _mm_setzero_si128();
    halves = _mm_insert_epi16(halves, half_bits(rows[0] + offset), 0);
    halves = _mm_insert_epi16(halves, half_bits(rows[1] + offset), 1);
    halves = _mm_insert_epi16(halves, half_bits(rows[2] + offset), 2);
    halves = _mm_insert_epi16(halves, half_bits(rows[3] + offset), 3);
    halves = _mm_insert_epi16(halves, half_bits(rows[4] + offset), 4);
    halves = _mm_insert_epi16(halves, half_bits(rows[5] + offset), 5);
    halves = _mm_insert_epi16(halves, half_bits(rows[6] + offset), 6);
    halves = _mm_insert_epi16(halves, half_bits(rows[7] + offset), 7);
    return _mm256_cvtph_ps(halves);
  }

  static void largest_magnitudes(const float* const* groups, float* peaks) {
    I largest[4];
    for (int g = 0; g < 4; ++g) {
      const float* x = groups[g];
      largest[g] = _mm256_max_epi32(_mm256_max_epi32(magnitudes(x), magnitudes(x + 8)),
                                    _mm256_max_epi32(magnitudes(x + 16), magnitudes(x + 24)));
    }
    const auto max = [](auto a, auto b) {
      if constexpr (sizeof a == 32)
        return _mm256_max_epi32(a, b);
      else
        return _mm_max_epi32(a, b);
    };
    _mm_storeu_ps(peaks, _mm_castsi128_ps(fold(largest, max)));
  }
  static void store_integers(const float* const* groups, const float* inverses,
                             uint8_t* const* lines, int32_t (*half_sums)[4]) {
    const I order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    I sums[2][4];
    for (int g = 0; g < 4; ++g) {
      const float* x = groups[g];
      const I a = rounded(x, inverses[g]), b = rounded(x + 8, inverses[g]);
      const I c = rounded(x + 16, inverses[g]), d = rounded(x + 24, inverses[g]);
      // From [4 high bytes, 4 low bytes, ...] in each 128 bits to all high ones, all low ones.
      const I ab = _mm256_unpacklo_epi32(bytes(a), bytes(b));
      const I cd = _mm256_unpacklo_epi32(bytes(c), bytes(d));
      auto* line = reinterpret_cast<I*>(lines[g]);
      const I high = _mm256_unpacklo_epi64(ab, cd), low = _mm256_unpackhi_epi64(ab, cd);
      _mm256_storeu_si256(line, _mm256_permutevar8x32_epi32(high, order));
      _mm256_storeu_si256(line + 1, _mm256_permutevar8x32_epi32(low, order));
      sums[0][g] = add(a, b);
      sums[1][g] = add(c, d);
    }
    const auto sum = [](auto a, auto b) {
      if constexpr (sizeof a == 32)
        return _mm256_add_epi32(a, b);
      else
        return _mm_add_epi32(a, b);
    };
    // Modulo 2^32 the bits of the rounder can be taken off after adding up.
    const __m128i bias = _mm_set1_epi32(static_cast<int32_t>(float_bits(kRounder) * 16));
    for (int h = 0; h < 2; ++h)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(half_sums[h]),
                       _mm_sub_epi32(fold(sums[h], sum), bias));
  }

 private:
  static I magnitudes(const float* x) {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const I*>(x)),
                            _mm256_set1_epi32(0x7FFFFFFF));
  }
  // All words of each of four registers brought together by `op`.
  template <class Op> static __m128i fold(const I* four, const Op& op) {
    const I ab =
        op(_mm256_unpacklo_epi32(four[0], four[1]), _mm256_unpackhi_epi32(four[0], four[1]));
    const I cd =
        op(_mm256_unpacklo_epi32(four[2], four[3]), _mm256_unpackhi_epi32(four[2], four[3]));
    const I all = op(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    return op(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  }
  static I rounded(const float* x, float inverse) {
    const F product = _mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(inverse));
    return _mm256_castps_si256(_mm256_add_ps(product, _mm256_set1_ps(kRounder)));
  }
  // The high bytes, rounded, and the low ones of four words in the first two of each lane.
  static I bytes(I q) {
    const I high = _mm256_add_epi32(q, _mm256_set1_epi32(128));
    const I both = _mm256_blendv_epi8(high, q, _mm256_set1_epi32(0xFF));
    return _mm256_shuffle_epi8(
        both, _mm256_broadcastsi128_si256(_mm_set_epi32(0, 0, 0x0C080400, 0x0D090501)));
  }
  static I pairs(I w, int32_t x) { return _mm256_maddubs_epi16(w, _mm256_set1_epi32(x)); }
  // Byte `index` of each word four times.
  static I spread_byte(int index) {
    const __m128i words = _mm_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(words),
                           _mm256_set1_epi8(static_cast<char>(index)));
  }
  static int16_t half_bits(const uint8_t* p) {
    int16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
  }
  // 16 bytes of row i and of row i + 4, side by side.
  static I two_rows(const uint8_t* const* rows, int i, size_t offset) {
    const I low =
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + offset)));
    return _mm256_inserti128_si256(
        low, _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i + 4] + offset)), 1);
  }
};

} // namespace
