// 32 columns of a packed panel as bfloat16 pairs: line i holds columns 2i and 2i + 1 of the 16
// rows, what a matrix unit takes as its right operand.
//
// An integer u in some bits of a word becomes a float without a conversion: with the exponent of 1
// above it in place, bit `at` of the mantissa counts 2^(at - 23), so the float is 1 + u * 2^(at -
// 23), and one fused multiply-subtract gives scale * u - min.
#pragma once

#include <cstdint>
#include <immintrin.h>

#include "panel.h"

namespace {

// For fields that begin at bit 16 and at bit 8 of a word.
struct FieldScales {
  __m512 scale16, offset16, scale8, offset8;
};

KTOPS_INLINE FieldScales field_scales(__m512 scale, __m512 min) {
  const __m512 at16 = _mm512_set1_ps(0x1p7f), at8 = _mm512_set1_ps(0x1p15f);
  return {_mm512_mul_ps(scale, at16), _mm512_fmadd_ps(scale, at16, min), _mm512_mul_ps(scale, at8),
          _mm512_fmadd_ps(scale, at8, min)};
}

KTOPS_INLINE __m512i packed_line(const uint8_t* lines, size_t index) {
  return _mm512_loadu_si512(lines + 64 * index);
}
KTOPS_INLINE __m512 packed_half(const uint8_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

// kMask selects the field: 1 + field * 2^-7 or 2^-15.
template <uint32_t kMask> KTOPS_INLINE __m512 one_and_field(__m512i word) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      word, _mm512_set1_epi32(static_cast<int>(kMask)), _mm512_set1_epi32(0x3F800000), 0xEA));
}
template <uint32_t kMask> KTOPS_INLINE __m512 weight_at16(__m512i word, const FieldScales& scales) {
  return _mm512_fmsub_ps(one_and_field<kMask << 16>(word), scales.scale16, scales.offset16);
}
template <uint32_t kMask> KTOPS_INLINE __m512 weight_at8(__m512i word, const FieldScales& scales) {
  return _mm512_fmsub_ps(one_and_field<kMask << 8>(word), scales.scale8, scales.offset8);
}

// Both rounded to nearest, ties away from zero.
KTOPS_INLINE void store_pair(uint8_t* line, __m512 even, __m512 odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  _mm512_store_si512(line, _mm512_mask_blend_epi16(0xAAAAAAAA, low, high));
}

// Four columns, a byte each, their fields in the low bits of the bytes.
template <uint32_t kMask>
KTOPS_INLINE void store_low_fields(uint8_t* lines, __m512i word, const FieldScales& scales) {
  store_pair(lines, weight_at16<kMask>(_mm512_slli_epi32(word, 16), scales),
             weight_at8<kMask>(word, scales));
  store_pair(lines + 64, weight_at16<kMask>(word, scales),
             weight_at16<kMask>(_mm512_srli_epi32(word, 8), scales));
}
// The same for fields that are the high nibbles of the bytes.
KTOPS_INLINE void store_high_nibbles(uint8_t* lines, __m512i word, const FieldScales& scales) {
  const __m512i front = _mm512_slli_epi32(word, 4), back = _mm512_srli_epi32(word, 12);
  store_pair(lines, weight_at8<0x0F>(front, scales), weight_at16<0x0F>(front, scales));
  store_pair(lines + 64, weight_at8<0x0F>(back, scales), weight_at16<0x0F>(back, scales));
}
// Fields of eight bits reach the exponent at bit 16.
KTOPS_INLINE void store_bytes(uint8_t* lines, __m512i word, const FieldScales& scales) {
  store_pair(lines, weight_at8<0xFF>(_mm512_slli_epi32(word, 8), scales),
             weight_at8<0xFF>(word, scales));
  store_pair(lines + 64, weight_at8<0xFF>(_mm512_srli_epi32(word, 8), scales),
             weight_at8<0xFF>(_mm512_srli_epi32(word, 16), scales));
}

KTOPS_INLINE __m512i nibbles_or(__m512i low, __m512i high) { // low nibbles of low, the rest of high
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x0F0F0F0F), low, high, 0xCA);
}
KTOPS_INLINE __m512i shift_right(__m512i word, uint32_t count) {
  return _mm512_srl_epi32(word, _mm_cvtsi32_si128(static_cast<int>(count)));
}
KTOPS_INLINE __m512i rotate_left(__m512i word, uint32_t count) {
  return _mm512_rolv_epi32(word, _mm512_set1_epi32(static_cast<int>(count & 31)));
}

// A block of a type: `unpack` gives group `group` of 32 columns of the 16 blocks that begin at
// `lines` and `halves`.
struct UnpackQ4_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q4_0;
  KTOPS_INLINE static void unpack(const uint8_t* lines, const uint8_t* halves, uint32_t,
                                  uint8_t* tile) {
    const __m512 d = packed_half(halves);
    const FieldScales scales = field_scales(d, _mm512_mul_ps(d, _mm512_set1_ps(8)));
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      store_low_fields<0x0F>(tile + 128 * i, packed_line(lines, i), scales);
      store_high_nibbles(tile + 128 * (4 + i), packed_line(lines, i), scales);
    }
  }
};

struct UnpackQ5_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q5_0;
  KTOPS_INLINE static void unpack(const uint8_t* lines, const uint8_t* halves, uint32_t,
                                  uint8_t* tile) {
    const __m512 d = packed_half(halves);
    const FieldScales scales = field_scales(d, _mm512_mul_ps(d, _mm512_set1_ps(16)));
    const __m512i fifths = packed_line(lines, 0);
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; ++i) {
      const __m512i low = shift_right(packed_line(lines, 1 + i % 4), 4 * (i / 4));
      const __m512i four = _mm512_and_si512(shift_right(fifths, 4 * i), _mm512_set1_epi32(0xF));
      // Bit k to bit 4 of byte k.
      const __m512i spread = _mm512_mullo_epi32(four, _mm512_set1_epi32(0x02040810));
      store_low_fields<0x1F>(tile + 128 * i, nibbles_or(low, spread), scales);
    }
  }
};

struct UnpackQ8_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q8_0;
  KTOPS_INLINE static void unpack(const uint8_t* lines, const uint8_t* halves, uint32_t,
                                  uint8_t* tile) {
    const __m512 d = packed_half(halves);
    const FieldScales scales = field_scales(d, _mm512_mul_ps(d, _mm512_set1_ps(128)));
    const __m512i bias = _mm512_set1_epi8(-128);
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i)
      store_bytes(tile + 128 * i, _mm512_xor_si512(packed_line(lines, i), bias), scales);
  }
};

// Scale and minimum of a group from the head of Q4_K and Q5_K: line 0 is d and dmin, lines 1 to 3
// the packed six-bit numbers.
KTOPS_INLINE FieldScales head_scales(const uint8_t* lines, uint32_t group) {
  const __m512i deltas = packed_line(lines, 0), first = packed_line(lines, 1);
  const __m512i second = packed_line(lines, 2), third = packed_line(lines, 3);
  const __m512i six = _mm512_set1_epi32(0x3F), four = _mm512_set1_epi32(0x0F);
  const uint32_t shift = 8 * (group % 4);
  __m512i scale, min;
  if (group < 4) {
    scale = _mm512_and_si512(shift_right(first, shift), six);
    min = _mm512_and_si512(shift_right(second, shift), six);
  } else {
    const auto join = [&](__m512i low, __m512i high) {
      const __m512i top = _mm512_and_si512(shift_right(high, shift + 2), _mm512_set1_epi32(0x30));
      return _mm512_or_si512(_mm512_and_si512(low, four), top);
    };
    scale = join(shift_right(third, shift), first);
    min = join(shift_right(third, shift + 4), second);
  }
  const auto half = [](__m512i word) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(word)); };
  return field_scales(_mm512_mul_ps(half(deltas), _mm512_cvtepi32_ps(scale)),
                      _mm512_mul_ps(half(_mm512_srli_epi32(deltas, 16)), _mm512_cvtepi32_ps(min)));
}

struct UnpackQ4_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q4_K;
  KTOPS_INLINE static void unpack(const uint8_t* lines, const uint8_t*, uint32_t group,
                                  uint8_t* tile) {
    const FieldScales scales = head_scales(lines, group);
    const uint8_t* words = lines + 64 * (4 + 8 * (group / 2));
    if (group % 2 == 0) {
#pragma GCC unroll 8
      for (size_t i = 0; i < 8; ++i)
        store_low_fields<0x0F>(tile + 128 * i, packed_line(words, i), scales);
    } else {
#pragma GCC unroll 8
      for (size_t i = 0; i < 8; ++i)
        store_high_nibbles(tile + 128 * i, packed_line(words, i), scales);
    }
  }
};

struct UnpackQ5_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q5_K;
  KTOPS_INLINE static void unpack(const uint8_t* lines, const uint8_t*, uint32_t group,
                                  uint8_t* tile) {
    const FieldScales scales = head_scales(lines, group);
    const uint8_t* words = lines + 64 * (12 + 8 * (group / 2));
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) {
      const __m512i low = shift_right(packed_line(words, i), 4 * (group % 2));
      const __m512i fifth = rotate_left(packed_line(lines, 4 + i), 4 - group);
      store_low_fields<0x1F>(tile + 128 * i, nibbles_or(low, fifth), scales);
    }
  }
};

struct UnpackQ6_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q6_K;
  KTOPS_INLINE static void unpack(const uint8_t* lines, const uint8_t* halves, uint32_t group,
                                  uint8_t* tile) {
    const __m512 d = packed_half(halves);
    const uint32_t half = group / 4, part = group % 4;
    const uint8_t* words = lines + 64 * (16 * half + 8 * (part & 1));
    const uint8_t* tops = lines + 64 * (32 + 8 * half);
    const __m512i numbers = packed_line(lines, 48 + group / 2);
#pragma GCC unroll 2
    for (uint32_t side = 0; side < 2; ++side) { // a scale for 16 columns
      const uint32_t byte = 2 * (group % 2) + side;
      const __m512i number = _mm512_srai_epi32(rotate_left(numbers, 24 - 8 * byte), 24);
      const __m512 scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(number));
      const FieldScales scales = field_scales(scale, _mm512_mul_ps(scale, _mm512_set1_ps(32)));
#pragma GCC unroll 4
      for (size_t i = 4 * side; i < 4 * side + 4; ++i) {
        const __m512i low = shift_right(packed_line(words, i), 4 * (part / 2));
        const __m512i top = rotate_left(packed_line(tops, i), 4 - 2 * part);
        store_low_fields<0x3F>(tile + 128 * i, nibbles_or(low, top), scales);
      }
    }
  }
};

// Group `index` of all columns of a panel into a tile; the same group of the next chunk is called
// into the second-level cache.
using UnpackGroup = void (*)(const uint8_t* panel, size_t index, size_t cols, uint8_t* tile);

template <class Type>
void unpack_group(const uint8_t* panel, size_t index, size_t cols, uint8_t* tile) {
  constexpr ktops::TypeInfo kInfo = ktops::type_info(Type::kType);
  constexpr ktops::PackedType kPacked = ktops::packed_type(Type::kType);
  constexpr size_t kGroups = kInfo.block_size / 32;
  constexpr size_t kGroupBytes = kInfo.block_bytes * kPanelRows / kGroups;
  const uint8_t* ahead = panel + (index + ktops::kChunkColumns / 32) * kGroupBytes;
#pragma GCC unroll 16
  for (size_t line = 0; line < (kGroupBytes + 63) / 64; ++line)
    __builtin_prefetch(ahead + 64 * line, 0, 2);
  const ktops::PackedPlace place =
      ktops::packed_place(kPacked, index / kGroups, cols / kInfo.block_size);
  Type::unpack(panel + place.lines, panel + place.halves, static_cast<uint32_t>(index % kGroups),
               tile);
}

constexpr UnpackGroup unpack_of(uint32_t type) {
  switch (type) {
  case KTOPS_TYPE_Q4_0:
    return unpack_group<UnpackQ4_0>;
  case KTOPS_TYPE_Q5_0:
    return unpack_group<UnpackQ5_0>;
  case KTOPS_TYPE_Q8_0:
    return unpack_group<UnpackQ8_0>;
  case KTOPS_TYPE_Q4_K:
    return unpack_group<UnpackQ4_K>;
  case KTOPS_TYPE_Q5_K:
    return unpack_group<UnpackQ5_K>;
  case KTOPS_TYPE_Q6_K:
    return unpack_group<UnpackQ6_K>;
  default:
    return nullptr;
  }
}

} // namespace
