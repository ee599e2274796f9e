// Activations to integers; norm, exponentials and SiLU: plain loops that the compiler vectorises.
#pragma once

#include <cstddef>
#include <emmintrin.h>
#include <xmmintrin.h>

#include "panel.h"
#include "rounding.h"

namespace {

// Below this the scale would leave the range of normal floats; such a group counts as zero.
constexpr float kSmallestMagnitude = 0x1p-111f;

KTOPS_INLINE __m128 counts_as_zero(__m128 peaks) {
  return _mm_cmplt_ps(peaks, _mm_set1_ps(kSmallestMagnitude));
}

// What a record says about four groups with these largest magnitudes and these sums of integers, by
// half and by group; the first `count` of them are stored. SSE2 is there on every machine.
KTOPS_INLINE void store_metas(__m128 peaks, const int32_t (*half_sums)[4], size_t count,
                              GroupMeta* metas) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half_sums[0]));
  const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half_sums[1]));
  const __m128i sum = _mm_add_epi32(first, last), zero = _mm_setzero_si128();
  const __m128 ratio = _mm_div_ps(peaks, _mm_set1_ps(ktops::kLargestInteger));
  __m128 by_group[4] = {_mm_andnot_ps(counts_as_zero(peaks), ratio), _mm_setzero_ps(),
                        _mm_castsi128_ps(_mm_sub_epi32(zero, sum)),
                        _mm_castsi128_ps(_mm_sub_epi32(zero, first))};
  by_group[1] = _mm_mul_ps(by_group[0], _mm_cvtepi32_ps(sum));
  _MM_TRANSPOSE4_PS(by_group[0], by_group[1], by_group[2], by_group[3]);
  static_assert(sizeof(GroupMeta) == 20 && offsetof(GroupMeta, minus_half_sums) == 12);
  for (size_t i = 0; i < count; ++i) {
    memcpy(metas + i, by_group + i, sizeof by_group[i]);
    metas[i].minus_half_sums[1] = -half_sums[1][i];
  }
}

// Four groups of activations; at the end the last group stands for those that are missing.
struct FourGroups {
  const float* x[4];
  uint8_t* lines[4];

  KTOPS_INLINE FourGroups(const float* all, size_t first, size_t num_groups, void* all_lines) {
    for (size_t i = 0; i < 4; ++i) {
      const size_t index = first + i < num_groups ? first + i : num_groups - 1;
      x[i] = all + index * ktops::kIntColumns;
      lines[i] = static_cast<uint8_t*>(all_lines) + index * ktops::kLineBytes;
    }
  }
};

// Multiplication and addition round the same on every instruction set, so all of them see the same
// integers. An infinity or NaN makes the scale one. The magnitudes of sixteen groups come first,
// because each of these steps is a long chain: of several, one hides the other.
template <class V> void quantize(const float* x, size_t num_groups, void* lines, GroupMeta* metas) {
  for (size_t first = 0; first < num_groups; first += 16) {
    const size_t end = num_groups - first < 16 ? num_groups : first + 16;
    alignas(16) float peaks[16], inverses[16];
    for (size_t g = first; g < end; g += 4) {
      const FourGroups four(x, g, num_groups, lines);
      V::largest_magnitudes(four.x, peaks + (g - first));
      const __m128 peak = _mm_load_ps(peaks + (g - first));
      const __m128 ratio = _mm_div_ps(_mm_set1_ps(ktops::kLargestInteger), peak);
      _mm_store_ps(inverses + (g - first), _mm_andnot_ps(counts_as_zero(peak), ratio));
    }
    for (size_t g = first; g < end; g += 4) {
      const FourGroups four(x, g, num_groups, lines);
      int32_t half_sums[2][4];
      V::store_integers(four.x, inverses + (g - first), four.lines, half_sums);
      store_metas(_mm_load_ps(peaks + (g - first)), half_sums, end - g < 4 ? end - g : 4,
                  metas + g);
    }
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

inline void exponentials(const float* x, float* out, size_t count) {
  for (size_t i = 0; i < count; ++i)
    out[i] = exponential(x[i]);
}

// Sixteen sums side by side on every instruction set: all of them give the same bits.
inline void rms_norm(const float* x, const float* weight, float eps, float* out, size_t count) {
  float sums[16] = {};
  const size_t whole = count / 16 * 16;
  for (size_t i = 0; i < whole; i += 16)
    for (size_t j = 0; j < 16; ++j)
      sums[j] += x[i + j] * x[i + j];
  for (size_t i = whole; i < count; ++i)
    sums[i - whole] += x[i] * x[i];
  float sum = 0;
  for (const float part : sums)
    sum += part;
  const __m128 mean = _mm_set_ss(sum / static_cast<float>(count) + eps);
  const float factor = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(mean));
  for (size_t i = 0; i < count; ++i)
    out[i] = x[i] * factor * weight[i];
}

} // namespace
