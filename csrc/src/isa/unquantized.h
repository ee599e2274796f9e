// F32, F16 and BF16 weights: float32 products of 16 columns at a time.
#pragma once

#include "source.h"

namespace {

template <class V> struct F32 {
  static constexpr size_t kBytes = 4;
  KTOPS_INLINE static void unpack(Rows rows, size_t offset, typename V::F w[16]) {
    typename V::I q[16];
    V::load8(rows, offset, q);
    V::load8(rows, offset + 32, q + 8);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      w[i] = V::as_float(q[i]);
  }
};

template <class V> struct F16 {
  static constexpr size_t kBytes = 2;
  KTOPS_INLINE static void unpack(Rows rows, size_t offset, typename V::F w[16]) {
    typename V::I q[8];
    V::load8(rows, offset, q);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = V::half_low(q[i]);
      w[2 * i + 1] = V::half_high(q[i]);
    }
  }
};

template <class V> struct BF16 {
  static constexpr size_t kBytes = 2;
  KTOPS_INLINE static void unpack(Rows rows, size_t offset, typename V::F w[16]) {
    typename V::I q[8];
    V::load8(rows, offset, q);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = V::as_float(V::sll(q[i], 16));
      w[2 * i + 1] = V::as_float(V::and_(q[i], V::set(0xFFFF0000u)));
    }
  }
};

// Adds 16 columns to the sums of some tokens.
template <class V, int kTokens>
KTOPS_INLINE void add_columns(const typename V::F w[16], const float* const* x,
                              typename V::F* sums) {
  typename V::F odd[kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    sums[t] = V::fma(w[0], V::set(x[t][0]), sums[t]);
    odd[t] = V::mul(w[1], V::set(x[t][1]));
  }
#pragma GCC unroll 7
  for (int i = 2; i < 16; i += 2) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      sums[t] = V::fma(w[i], V::set(x[t][i]), sums[t]);
      odd[t] = V::fma(w[i + 1], V::set(x[t][i + 1]), odd[t]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t)
    sums[t] = V::add(sums[t], odd[t]);
}

// The two ways of OneToken and ManyTokens, for unquantised weights.
template <class V> class OneFloatToken {
 public:
  OneFloatToken(const PanelArgs& args, uint32_t part)
      : x_(static_cast<const float*>(args.records[0])), out_(args.out + part * V::kLanes),
        sum_(V::set(0.0f)) {}
  ~OneFloatToken() { V::store(out_, sum_); }
  OneFloatToken(const OneFloatToken&) = delete;
  OneFloatToken& operator=(const OneFloatToken&) = delete;

  KTOPS_INLINE void add(const typename V::F w[16], size_t line) {
    const float* x = x_ + 16 * line;
    add_columns<V, 1>(w, &x, &sum_);
  }

 private:
  const float* const x_;
  float* const out_;
  typename V::F sum_;
};

template <class V> class ManyFloatTokens {
 public:
  ManyFloatTokens(const PanelArgs& args, uint32_t part)
      : args_(args), out_(args.out + part * V::kLanes) {
    for (size_t t = 0; t < args.num_tokens; ++t)
      V::store(out_ + t * kPanelRows, V::set(0.0f));
  }

  KTOPS_INLINE void add(const typename V::F w[16], size_t line) {
    uint32_t t = 0;
    for (; t + 4 <= args_.num_tokens; t += 4)
      add_some<4>(w, line, t);
    for (; t < args_.num_tokens; ++t)
      add_some<1>(w, line, t);
  }

 private:
  template <int kTokens>
  KTOPS_INLINE void add_some(const typename V::F w[16], size_t line, uint32_t first) {
    const float* x[kTokens];
    typename V::F sums[kTokens];
    float* out = out_ + first * kPanelRows;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      x[t] = static_cast<const float*>(args_.records[first + t]) + 16 * line;
      __builtin_prefetch(x[t] + 16);
      sums[t] = V::load(out + t * kPanelRows);
    }
    add_columns<V, kTokens>(w, x, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t)
      V::store(out + t * kPanelRows, sums[t]);
  }

  const PanelArgs& args_;
  float* const out_;
};

template <class V, template <class> class Type, class Tokens>
KTOPS_INLINE void add_lines(const PanelArgs& args, const uint8_t** rows, uint32_t part) {
  Tokens tokens(args, part);
  typename V::F w[16];
  constexpr size_t kLineBytes = 16 * Type<V>::kBytes;
  const size_t num_lines = args.cols / 16, rest = args.cols % 16;
  NextPanel<V, kLineBytes> next(args, part);
  for (size_t line = 0; line < num_lines; ++line) {
    next.fetch();
    Type<V>::unpack(rows, line * kLineBytes, w);
    tokens.add(w, line);
  }
  if (rest == 0)
    return;
  uint8_t padded[V::kLanes][kLineBytes] = {}; // never read past the end of a row
  for (uint32_t i = 0; i < V::kLanes; ++i) {
    memcpy(padded[i], rows[i] + num_lines * kLineBytes, rest * Type<V>::kBytes);
    rows[i] = padded[i];
  }
  Type<V>::unpack(rows, 0, w);
  tokens.add(w, num_lines);
}

template <class V, template <class> class Type> void float_rows(const PanelArgs& args) {
  const uint8_t* rows[kParts<V>][V::kLanes];
  find_rows<V>(args, rows);
  for (uint32_t part = 0; part < kParts<V>; ++part) {
    if (args.num_tokens == 1)
      add_lines<V, Type, OneFloatToken<V>>(args, rows[part], part);
    else
      add_lines<V, Type, ManyFloatTokens<V>>(args, rows[part], part);
  }
}

} // namespace
