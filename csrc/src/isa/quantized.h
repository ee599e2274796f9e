// The quantised formats: how a group of 32 columns is unpacked from its blocks.
#pragma once

#include "group_dots.h"

namespace {

constexpr uint32_t kEvenNibbles = 0x000F000F, kOddNibbles = 0x0F000F00;
constexpr uint32_t kEvenBytes = 0x00FF00FF, kOddBytes = 0xFF00FF00;

template <class V> struct Q8_0 {
  static constexpr size_t kColumns = 32, kBytes = 34;

  template <class Tokens>
  KTOPS_INLINE static void block(Rows rows, size_t offset, size_t group_index, Tokens& tokens) {
    typename V::I q[8];
    V::load8(rows, offset + 2, q);
    Group<V> group;
    group.scale[0] = V::half_at(rows, offset);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto biased = V::xor_(V::and_(q[i], V::set(kEvenBytes)), V::set(0x00800080u));
      group.w[i] = V::sub_halves(biased, 128);
      group.w[8 + i] = V::sra_halves(q[i], 8);
    }
    tokens.template add<Sums::kPlain, Scaling::kOne>(group, group_index);
  }
};

template <class V> struct Q4_0 {
  static constexpr size_t kColumns = 32, kBytes = 18;

  template <class Tokens>
  KTOPS_INLINE static void block(Rows rows, size_t offset, size_t group_index, Tokens& tokens) {
    typename V::I q[4];
    V::load4(rows, offset + 2, q);
    Group<V> group;
    group.scale[0] = V::half_at(rows, offset);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto low = i < 4 ? q[i] : V::srl(q[i - 4], 4);
      group.w[i] = V::sub_halves(V::and_(low, V::set(kEvenNibbles)), 8);
      group.w[8 + i] = V::sub_halves(V::and_(low, V::set(kOddNibbles)), 8 << 8);
    }
    tokens.template add<Sums::kOddTimes256, Scaling::kOne>(group, group_index);
  }
};

template <class V> struct Q5_0 {
  static constexpr size_t kColumns = 32, kBytes = 22;

  template <class Tokens>
  KTOPS_INLINE static void block(Rows rows, size_t offset, size_t group_index, Tokens& tokens) {
    typename V::I q[4];
    V::load4(rows, offset + 6, q);
    const auto high = V::word_at(rows, offset + 2);
    Group<V> group;
    group.scale[0] = V::half_at(rows, offset);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto low = i < 4 ? q[i] : V::srl(q[i - 4], 4);
      // The product puts bit k of a nibble at bit 4 of byte k.
      const auto bits = V::and_(V::srl(high, 4 * i), V::set(0xFu));
      const auto spread = V::mul(bits, V::set(0x02040810u));
      const auto fifth = V::and_(spread, V::set(0x10101010u));
      const auto even = V::or_and(V::and_(fifth, V::set(kEvenBytes)), low, V::set(kEvenNibbles));
      const auto odd = V::or_and(V::and_(fifth, V::set(kOddBytes)), low, V::set(kOddNibbles));
      group.w[i] = V::sub_halves(even, 16);
      group.w[8 + i] = V::sub_halves(odd, 16 << 8);
    }
    tokens.template add<Sums::kOddTimes256, Scaling::kOne>(group, group_index);
  }
};

// Scale and minimum of sub-block j from the transposed head of a Q4_K or Q5_K block: word 0 is d
// and dmin, words 1 to 3 the packed six-bit numbers.
template <class V>
KTOPS_INLINE void set_scale_and_min(const typename V::I head[4], int j, Group<V>& group) {
  using I = typename V::I;
  const I six = V::set(0x3Fu), four = V::set(0x0Fu), top = V::set(0x30u);
  I scale, min;
  if (j < 4) {
    scale = V::and_(V::srl(head[1], 8 * j), six);
    min = V::and_(V::srl(head[2], 8 * j), six);
  } else {
    const int shift = 8 * (j - 4);
    scale = V::or_and(V::and_(V::srl(head[3], shift), four), V::srl(head[1], shift + 2), top);
    min = V::or_and(V::and_(V::srl(head[3], shift + 4), four), V::srl(head[2], shift + 2), top);
  }
  group.scale[0] = V::mul(V::half_low(head[0]), V::to_float(scale));
  group.min = V::mul(V::half_high(head[0]), V::to_float(min));
}

template <class V> struct Q4_K {
  static constexpr size_t kColumns = 256, kBytes = 144;

  template <class Tokens>
  KTOPS_INLINE static void block(Rows rows, size_t offset, size_t group_index, Tokens& tokens) {
    typename V::I head[4], q[8];
    V::load4(rows, offset, head);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      V::load8(rows, offset + 16 + 32 * pair, q);
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side) {
        Group<V> group;
        set_scale_and_min(head, 2 * pair + side, group);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const auto low = V::srl(q[i], 4 * side);
          group.w[i] = V::and_(low, V::set(kEvenNibbles));
          group.w[8 + i] = V::and_(low, V::set(kOddNibbles));
        }
        tokens.template add<Sums::kOddTimes256, Scaling::kOneAndMin>(group,
                                                                     group_index + 2 * pair + side);
      }
    }
  }
};

template <class V> struct Q5_K {
  static constexpr size_t kColumns = 256, kBytes = 176;

  template <class Tokens>
  KTOPS_INLINE static void block(Rows rows, size_t offset, size_t group_index, Tokens& tokens) {
    typename V::I head[4], high[8], q[8];
    V::load4(rows, offset, head);
    V::load8(rows, offset + 16, high);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      V::load8(rows, offset + 48 + 32 * pair, q);
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side) {
        const int j = 2 * pair + side;
        Group<V> group;
        set_scale_and_min(head, j, group);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const auto low = V::srl(q[i], 4 * side);
          const auto fifth = j < 4 ? V::sll(high[i], 4 - j) : V::srl(high[i], j - 4);
          group.w[i] = V::or_and(V::and_(low, V::set(kEvenNibbles)), fifth, V::set(0x00100010u));
          group.w[8 + i] = V::or_and(V::and_(low, V::set(kOddNibbles)), fifth, V::set(0x10001000u));
        }
        tokens.template add<Sums::kHalvesOddTimes256, Scaling::kOneAndMin>(group, group_index + j);
      }
    }
  }
};

template <class V> struct Q6_K {
  static constexpr size_t kColumns = 256, kBytes = 210;

  template <class Tokens>
  KTOPS_INLINE static void block(Rows rows, size_t offset, size_t group_index, Tokens& tokens) {
    typename V::I scales[4], high[8], q[8];
    V::load4(rows, offset + 192, scales);
    const auto d = V::half_at(rows, offset + 208);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      V::load8(rows, offset + 128 + 32 * half, high);
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        V::load8(rows, offset + 64 * half + 32 * (part & 1), q);
        const int j = 4 * half + part;
        Group<V> group;
#pragma GCC unroll 2
        for (int s = 0; s < 2; ++s) {
          const auto left = V::sll(scales[j / 2], 24 - 16 * (j & 1) - 8 * s);
          group.scale[s] = V::mul(d, V::to_float(V::sra(left, 24)));
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const auto low = V::srl(q[i], 4 * (part >> 1));
          const auto top = part < 2 ? V::sll(high[i], 4 - 2 * part) : V::srl(high[i], 2 * part - 4);
          const auto even = V::or_and(V::and_(low, V::set(kEvenNibbles)), top, V::set(0x00300030u));
          const auto odd = V::or_and(V::and_(low, V::set(kOddNibbles)), top, V::set(0x30003000u));
          group.w[i] = V::sub_halves(even, 32);
          group.w[8 + i] = V::sub_halves(odd, 32 << 8);
        }
        tokens.template add<Sums::kHalvesOddTimes256, Scaling::kTwo>(group, group_index + j);
      }
    }
  }
};

template <class V, template <class> class Type, class Tokens> class WithPrefetch {
 public:
  explicit WithPrefetch(const PanelArgs& args) : next_(args), tokens_(args) {}

  template <Sums kSums, Scaling kScaling>
  KTOPS_INLINE void add(const Group<V>& group, size_t index) {
    next_.fetch();
    tokens_.template add<kSums, kScaling>(group, index);
  }

 private:
  NextPanel<V, Type<V>::kBytes * 32 / Type<V>::kColumns> next_;
  Tokens tokens_;
};

template <class V, template <class> class Type, class Tokens>
KTOPS_INLINE void add_blocks(const PanelArgs& args) {
  const uint8_t* rows[V::kLanes];
  find_rows<V>(args, rows);
  WithPrefetch<V, Type, Tokens> tokens(args);
  constexpr size_t kGroups = Type<V>::kColumns / 32;
  const size_t num_blocks = args.cols / Type<V>::kColumns;
  for (size_t b = 0; b < num_blocks; ++b)
    Type<V>::block(rows, b * Type<V>::kBytes, b * kGroups, tokens);
}

template <class V, template <class> class Type> void quantized_panel(const PanelArgs& args) {
  if (args.num_tokens == 1)
    add_blocks<V, Type, OneToken<V>>(args);
  else
    add_blocks<V, Type, ManyTokens<V>>(args);
}

} // namespace
