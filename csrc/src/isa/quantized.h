// The quantised formats: how a group of 32 columns is unpacked from its blocks.
#pragma once

#include "group_dots.h"
#include "source.h"

namespace {

constexpr uint32_t kEvenNibbles = 0x000F000F, kOddNibbles = 0x0F000F00;
constexpr uint32_t kEvenBytes = 0x00FF00FF, kOddBytes = 0xFF00FF00;

template <class V> struct Q8_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q8_0;

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I q[8];
    source.load8(2, q);
    source.fetch(0);
    Group<V> group;
    group.scale[0] = source.half(0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto biased = V::xor_(V::and_(q[i], V::set(kEvenBytes)), V::set(0x00800080u));
      group.w[i] = V::sub_halves(biased, 128);
      group.w[8 + i] = V::sra_halves(q[i], 8);
    }
    tokens.template add<Sums::kPlain, Scaling::kOne>(group, place.group, place.part);
  }
};

template <class V> struct Q4_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q4_0;

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I q[4];
    source.load4(2, q);
    source.fetch(0);
    Group<V> group;
    group.scale[0] = source.half(0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto low = i < 4 ? q[i] : V::srl(q[i - 4], 4);
      group.w[i] = V::sub_halves(V::and_(low, V::set(kEvenNibbles)), 8);
      group.w[8 + i] = V::sub_halves(V::and_(low, V::set(kOddNibbles)), 8 << 8);
    }
    tokens.template add<Sums::kOddTimes256, Scaling::kOne>(group, place.group, place.part);
  }
};

template <class V> struct Q5_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q5_0;

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I q[4];
    source.load4(6, q);
    const auto high = source.word(2);
    source.fetch(0);
    Group<V> group;
    group.scale[0] = source.half(0);
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
    tokens.template add<Sums::kOddTimes256, Scaling::kOne>(group, place.group, place.part);
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
  static constexpr uint32_t kType = KTOPS_TYPE_Q4_K;

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I head[4], q[8];
    source.load4(0, head);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      source.load8(16 + 32 * pair, q);
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side) {
        source.fetch(2 * pair + side);
        Group<V> group;
        set_scale_and_min(head, 2 * pair + side, group);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const auto low = V::srl(q[i], 4 * side);
          group.w[i] = V::and_(low, V::set(kEvenNibbles));
          group.w[8 + i] = V::and_(low, V::set(kOddNibbles));
        }
        tokens.template add<Sums::kOddTimes256, Scaling::kOneAndMin>(
            group, place.group + 2 * pair + side, place.part);
      }
    }
  }
};

template <class V> struct Q5_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q5_K;

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I head[4], high[8], q[8];
    source.load4(0, head);
    source.load8(16, high);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      source.load8(48 + 32 * pair, q);
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side) {
        const int j = 2 * pair + side;
        source.fetch(2 * pair + side);
        Group<V> group;
        set_scale_and_min(head, j, group);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const auto low = V::srl(q[i], 4 * side);
          const auto fifth = j < 4 ? V::sll(high[i], 4 - j) : V::srl(high[i], j - 4);
          group.w[i] = V::or_and(V::and_(low, V::set(kEvenNibbles)), fifth, V::set(0x00100010u));
          group.w[8 + i] = V::or_and(V::and_(low, V::set(kOddNibbles)), fifth, V::set(0x10001000u));
        }
        tokens.template add<Sums::kHalvesOddTimes256, Scaling::kOneAndMin>(group, place.group + j,
                                                                           place.part);
      }
    }
  }
};

template <class V> struct Q6_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q6_K;

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I scales[4], high[8], q[8];
    source.load4(192, scales);
    const auto d = source.half(208);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      source.load8(128 + 32 * half, high);
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        source.load8(64 * half + 32 * (part & 1), q);
        const int j = 4 * half + part;
        source.fetch(j);
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
        tokens.template add<Sums::kHalvesOddTimes256, Scaling::kTwo>(group, place.group + j,
                                                                     place.part);
      }
    }
  }
};

template <class V, template <class> class Type, class Tokens>
KTOPS_INLINE void add_row_blocks(const PanelArgs& args) {
  constexpr ktops::TypeInfo kInfo = ktops::type_info(Type<V>::kType);
  constexpr size_t kGroups = kInfo.block_size / 32;
  Tokens tokens(args);
  const uint8_t* rows[kParts<V>][V::kLanes];
  find_rows<V>(args, rows);
  for (uint32_t part = 0; part < kParts<V>; ++part) {
    NextPanel<V, kInfo.block_bytes / kGroups> next(args, part);
    for (size_t b = 0; b < args.cols / kInfo.block_size; ++b) {
      const RowSource<V, decltype(next)> source{rows[part], b * kInfo.block_bytes, next};
      Type<V>::block(source, {b * kGroups, part}, tokens);
    }
  }
}

template <class V, template <class> class Type, class Tokens>
KTOPS_INLINE void add_packed_blocks(const PanelArgs& args) {
  constexpr ktops::TypeInfo kInfo = ktops::type_info(Type<V>::kType);
  constexpr ktops::PackedType kPacked = ktops::packed_type(Type<V>::kType);
  constexpr size_t kGroups = kInfo.block_size / 32;
  using Source = PackedSource<V, kPacked.words_at, kInfo.block_bytes * kPanelRows / kGroups>;
  Tokens tokens(args);
  const size_t num_blocks = args.cols / kInfo.block_size;
  StreamAhead ahead(args);
  for (size_t b = 0; b < num_blocks; ++b) {
    const ktops::PackedPlace place = ktops::packed_place(kPacked, b, num_blocks);
    const uint8_t* fetched = ahead.of(b * kInfo.block_bytes * kPanelRows);
#pragma GCC unroll 2
    for (uint32_t part = 0; part < kParts<V>; ++part) {
      const Source source{args.weights + place.lines + 4 * V::kLanes * part,
                          args.weights + place.halves + 2 * V::kLanes * part, fetched};
      Type<V>::block(source, {b * kGroups, part}, tokens);
    }
  }
}

template <class V, template <class> class Type> void quantized_rows(const PanelArgs& args) {
  if (args.num_tokens == 1)
    add_row_blocks<V, Type, OneToken<V>>(args);
  else
    add_row_blocks<V, Type, ManyTokens<V>>(args);
}

template <class V, template <class> class Type> void quantized_packed(const PanelArgs& args) {
  if (args.num_tokens == 1)
    add_packed_blocks<V, Type, OneToken<V>>(args);
  else
    add_packed_blocks<V, Type, ManyTokens<V>>(args);
}

} // namespace
