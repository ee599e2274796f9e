// Integer products of a group of 32 columns with the tokens of a tile.
#pragma once

#include "panel.h"

namespace {

enum class Scaling { kOne, kOneAndMin, kTwo };

// What a type's integers are: 0 to max_weight, the bias (a power of two) to be subtracted from
// each; and whether a group has one scale, one with a minimum, or one for each 16 columns.
struct Format {
  int max_weight;
  int bias_shift; // 0: no bias, else its logarithm
  Scaling scaling;
};

// 32 columns of a panel, four to a word. scale[1] is used by types with a scale for each 16
// columns, min by those with a minimum.
template <class V> struct Group {
  typename V::I w[8];
  typename V::F scale[2];
  typename V::F min;
};

// Integer products of a group with kTokens tokens. A product of bytes takes as long as one of twice
// their size and needs no spreading of weights to 16 bits, so the high and the low bytes of the
// activations are multiplied each for themselves. All sums are exact.
template <class V, Format kFormat, int kTokens> struct Dots {
  static constexpr bool kSplit = kFormat.scaling == Scaling::kTwo || kTokens == 1;
  static constexpr int kHalves = kSplit ? 2 : 1;
  typename V::I sums[kHalves][2 * kTokens]; // of the high and the low bytes of each token

  KTOPS_INLINE Dots(const Group<V>& group, const int32_t* const* x, const GroupMeta* const* metas) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        sums[h][2 * t] = V::zero();
        sums[h][2 * t + 1] =
            minus_bias(kSplit ? metas[t]->minus_half_sums[h] : metas[t]->minus_sum);
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int32_t* words[2 * kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        words[2 * t] = x[t] + 4 * h;
        words[2 * t + 1] = x[t] + 8 + 4 * h;
      }
      V::template dots<kFormat.max_weight, 2 * kTokens>(sums[kSplit ? h : 0], group.w + 4 * h,
                                                        words);
    }
  }
  KTOPS_INLINE static typename V::I minus_bias(int32_t minus_sum) {
    if constexpr (kFormat.bias_shift == 0)
      return V::zero();
    else
      return V::sll(V::set(static_cast<uint32_t>(minus_sum)), kFormat.bias_shift);
  }
  KTOPS_INLINE typename V::I half(int h, int t) const {
    return V::add(V::sll(sums[h][2 * t], 8), sums[h][2 * t + 1]);
  }
  KTOPS_INLINE typename V::I whole(int t) const {
    if constexpr (kSplit)
      return V::add(V::sll(V::add(sums[0][2 * t], sums[1][2 * t]), 8),
                    V::add(sums[0][2 * t + 1], sums[1][2 * t + 1]));
    else
      return half(0, t);
  }
};

// The sum of a row so far and one more group of it.
template <class V, Scaling kScaling, class GroupDots>
KTOPS_INLINE typename V::F add_dots(const Group<V>& group, const GroupDots& dots, int t,
                                    const GroupMeta& meta, typename V::F sum) {
  typename V::F dot;
  if constexpr (kScaling == Scaling::kTwo) {
    dot = V::mul(V::to_float(dots.half(0, t)), group.scale[0]);
    dot = V::fma(V::to_float(dots.half(1, t)), group.scale[1], dot);
  } else {
    dot = V::mul(V::to_float(dots.whole(t)), group.scale[0]);
  }
  sum = V::fma(dot, V::set(meta.scale), sum);
  if constexpr (kScaling == Scaling::kOneAndMin)
    sum = V::fnma(group.min, V::set(meta.sum), sum);
  return sum;
}

inline const GroupMeta* record_metas(const int32_t* record, size_t cols) {
  return reinterpret_cast<const GroupMeta*>(record + cols / 32 * 16);
}

// A single token: its sums stay in registers.
template <class V> class OneToken {
 public:
  explicit OneToken(const PanelArgs& args)
      : x_(static_cast<const int32_t*>(args.records[0])), metas_(record_metas(x_, args.cols)),
        out_(args.out) {
    for (uint32_t part = 0; part < kParts<V>; ++part)
      sums_[part] = V::set(0.0f);
  }
  ~OneToken() {
    for (uint32_t part = 0; part < kParts<V>; ++part)
      V::store(out_ + part * V::kLanes, sums_[part]);
  }
  OneToken(const OneToken&) = delete;
  OneToken& operator=(const OneToken&) = delete;

  template <Format kFormat>
  KTOPS_INLINE void add(const Group<V>& group, size_t index, uint32_t part) {
    const int32_t* x = x_ + 16 * index;
    const GroupMeta* meta = metas_ + index;
    const Dots<V, kFormat, 1> dots(group, &x, &meta);
    sums_[part] = add_dots<V, kFormat.scaling>(group, dots, 0, *meta, sums_[part]);
  }

 private:
  const int32_t* const x_;
  const GroupMeta* const metas_;
  float* const out_;
  typename V::F sums_[kParts<V>];
};

// Any number of tokens: their sums wait in memory.
template <class V> class ManyTokens {
 public:
  explicit ManyTokens(const PanelArgs& args)
      : records_(reinterpret_cast<const int32_t* const*>(args.records)),
        num_tokens_(args.num_tokens), cols_(args.cols), out_(args.out) {
    memset(out_, 0, num_tokens_ * kPanelRows * sizeof(float));
  }

  template <Format kFormat>
  KTOPS_INLINE void add(const Group<V>& group, size_t index, uint32_t part) {
    uint32_t t = 0;
    for (; t + V::kTokenStep <= num_tokens_; t += V::kTokenStep)
      add_some<kFormat, V::kTokenStep>(group, index, part, t);
    const uint32_t rest = num_tokens_ - t;
    if (V::kTokenStep > 3 && rest == 3)
      add_some<kFormat, 3>(group, index, part, t);
    else if (V::kTokenStep > 2 && rest == 2)
      add_some<kFormat, 2>(group, index, part, t);
    else if (rest == 1)
      add_some<kFormat, 1>(group, index, part, t);
  }

 private:
  template <Format kFormat, int kTokens>
  KTOPS_INLINE void add_some(const Group<V>& group, size_t index, uint32_t part, uint32_t first) {
    const int32_t* x[kTokens];
    const GroupMeta* metas[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      x[t] = records_[first + t] + 16 * index;
      metas[t] = record_metas(records_[first + t], cols_) + index;
      __builtin_prefetch(x[t] + 16); // many short streams: the hardware does not follow them
    }
    const Dots<V, kFormat, kTokens> dots(group, x, metas);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      float* out = out_ + (first + t) * kPanelRows + part * V::kLanes;
      V::store(out, add_dots<V, kFormat.scaling>(group, dots, t, *metas[t], V::load(out)));
    }
  }

  const int32_t* const* const records_;
  const uint32_t num_tokens_;
  const size_t cols_;
  float* const out_;
};

} // namespace
