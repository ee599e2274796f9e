// Integer products of a group of 32 columns with the tokens of a tile.
#pragma once

#include "panel.h"

namespace {

// 32 columns of a panel: words 0..7 hold the even columns, words 8..15 the odd ones, which may be
// 256 times as large (see Sums). scale[1] is used by types with a scale for each 16 columns, min by
// those with a minimum.
template <class V> struct Group {
  typename V::I w[16];
  typename V::F scale[2];
  typename V::F min;
};

// How the integers of a group are added up. The odd columns are the high bytes of 16-bit words; it
// is cheaper to leave them there and divide their sum by 256 than to shift each down. A sum then
// holds 16 * 256 * |w| * 32767 at most, which fits in 32 bits for |w| <= 16, or half as many
// columns of |w| <= 32.
enum class Sums { kPlain, kOddTimes256, kHalvesOddTimes256 };
enum class Scaling { kOne, kOneAndMin, kTwo };

template <class V, Sums kSums, int kTokens> struct Dots {
  static constexpr int kHalves = kSums == Sums::kHalvesOddTimes256 || kTokens == 1 ? 2 : 1;
  typename V::I even[kHalves][kTokens], odd[kHalves][kTokens];

  KTOPS_INLINE Dots(const Group<V>& group, const int32_t* const* x) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h)
        even[h][t] = odd[h][t] = V::zero();
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int half = kHalves == 2 ? i / 4 : 0; // columns 0..15 are in words 0..3 of the eight
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        even[half][t] = V::dot(even[half][t], group.w[i], x[t][i]);
        odd[half][t] = V::dot(odd[half][t], group.w[8 + i], x[t][8 + i]);
      }
    }
  }
  KTOPS_INLINE typename V::I half(int h, int t) const {
    if constexpr (kSums == Sums::kPlain)
      return V::add(even[h][t], odd[h][t]);
    else
      return V::add(even[h][t], V::sra(odd[h][t], 8));
  }
  KTOPS_INLINE typename V::I whole(int t) const {
    if constexpr (kHalves == 2)
      return V::add(half(0, t), half(1, t));
    else
      return half(0, t);
  }
};

// The sum of a row so far and one more group of it.
template <class V, Scaling kScaling, class GroupDots>
KTOPS_INLINE typename V::F add_dots(const Group<V>& group, const GroupDots& dots, int t,
                                    const float* meta, typename V::F sum) {
  typename V::F dot;
  if constexpr (kScaling == Scaling::kTwo) {
    dot = V::mul(V::to_float(dots.half(0, t)), group.scale[0]);
    dot = V::fma(V::to_float(dots.half(1, t)), group.scale[1], dot);
  } else {
    dot = V::mul(V::to_float(dots.whole(t)), group.scale[0]);
  }
  sum = V::fma(dot, V::set(meta[0]), sum);
  if constexpr (kScaling == Scaling::kOneAndMin)
    sum = V::fnma(group.min, V::set(meta[1]), sum);
  return sum;
}

inline const float* record_metas(const int32_t* record, size_t cols) {
  return reinterpret_cast<const float*>(record + cols / 32 * 16);
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

  template <Sums kSums, Scaling kScaling>
  KTOPS_INLINE void add(const Group<V>& group, size_t index, uint32_t part) {
    const int32_t* x = x_ + 16 * index;
    const Dots<V, kSums, 1> dots(group, &x);
    sums_[part] = add_dots<V, kScaling>(group, dots, 0, metas_ + 2 * index, sums_[part]);
  }

 private:
  const int32_t* const x_;
  const float* const metas_;
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

  template <Sums kSums, Scaling kScaling>
  KTOPS_INLINE void add(const Group<V>& group, size_t index, uint32_t part) {
    constexpr uint32_t kStep = kSums == Sums::kHalvesOddTimes256 ? 2 : 4; // what registers hold
    uint32_t t = 0;
    for (; t + kStep <= num_tokens_; t += kStep)
      add_some<kSums, kScaling, kStep>(group, index, part, t);
    for (; t < num_tokens_; ++t)
      add_some<kSums, kScaling, 1>(group, index, part, t);
  }

 private:
  template <Sums kSums, Scaling kScaling, int kTokens>
  KTOPS_INLINE void add_some(const Group<V>& group, size_t index, uint32_t part, uint32_t first) {
    const int32_t* x[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      x[t] = records_[first + t] + 16 * index;
      __builtin_prefetch(x[t] + 16); // many short streams: the hardware does not follow them
    }
    const Dots<V, kSums, kTokens> dots(group, x);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const float* meta = record_metas(records_[first + t], cols_) + 2 * index;
      float* out = out_ + (first + t) * kPanelRows + part * V::kLanes;
      V::store(out, add_dots<V, kScaling>(group, dots, t, meta, V::load(out)));
    }
  }

  const int32_t* const* const records_;
  const uint32_t num_tokens_;
  const size_t cols_;
  float* const out_;
};

} // namespace
