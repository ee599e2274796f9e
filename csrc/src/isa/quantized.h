// The quantised formats: how a group of 32 columns is unpacked from its blocks.
#pragma once

#include "group_dots.h"
#include "source.h"

namespace {

// The same byte in all four of a word.
constexpr uint32_t bytes_of(uint32_t byte) { return byte * 0x01010101u; }

template <class V> KTOPS_INLINE typename V::I low_nibbles(typename V::I words) {
  return V::and_(words, V::set(bytes_of(0x0F)));
}

template <class V> struct Q8_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q8_0;
  static constexpr Format kFormat{255, 7, Scaling::kOne};

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    source.fetch(0);
    Group<V> group;
    source.load8(2, group.w);
    group.scale[0] = source.half(0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      group.w[i] = V::xor_(group.w[i], V::set(bytes_of(0x80)));
    tokens.template add<kFormat>(group, place.group, place.part);
  }
};

template <class V> struct Q4_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q4_0;
  static constexpr Format kFormat{15, 3, Scaling::kOne};

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I q[4];
    source.fetch(0);
    source.load4(2, q);
    Group<V> group;
    group.scale[0] = source.half(0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      group.w[i] = low_nibbles<V>(q[i]);
      group.w[4 + i] = low_nibbles<V>(V::srl(q[i], 4));
    }
    tokens.template add<kFormat>(group, place.group, place.part);
  }
};

template <class V> struct Q5_0 {
  static constexpr uint32_t kType = KTOPS_TYPE_Q5_0;
  static constexpr Format kFormat{31, 4, Scaling::kOne};

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I q[4];
    source.fetch(0);
    source.load4(6, q);
    const auto high = source.word(2);
    Group<V> group;
    group.scale[0] = source.half(0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      group.w[i] = V::template add_bits<16>(low_nibbles<V>(q[i]), high, i);
      group.w[4 + i] = V::template add_bits<16>(low_nibbles<V>(V::srl(q[i], 4)), high, 4 + i);
    }
    tokens.template add<kFormat>(group, place.group, place.part);
  }
};

// Scale and minimum of sub-block j from the head of a Q4_K or Q5_K block: word 0 is d and dmin,
// words 1 to 3 the packed six-bit numbers.
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
  static constexpr Format kFormat{15, 0, Scaling::kOneAndMin};

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I head[4];
    source.load4(0, head);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      typename V::I q[8];
      source.fetch(j);
      source.load8(16 + 32 * (j / 2), q);
      Group<V> group;
      set_scale_and_min(head, j, group);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        group.w[i] = low_nibbles<V>(V::srl(q[i], 4 * (j % 2)));
      tokens.template add<kFormat>(group, place.group + j, place.part);
    }
  }
};

template <class V> struct Q5_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q5_K;
  static constexpr Format kFormat{31, 0, Scaling::kOneAndMin};

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I head[4], high[8];
    source.load4(0, head);
    source.load8(16, high);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      typename V::I q[8];
      source.fetch(j);
      source.load8(48 + 32 * (j / 2), q);
      Group<V> group;
      set_scale_and_min(head, j, group);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const auto fifth = j < 4 ? V::sll(high[i], 4 - j) : V::srl(high[i], j - 4);
        group.w[i] =
            V::or_and(low_nibbles<V>(V::srl(q[i], 4 * (j % 2))), fifth, V::set(bytes_of(0x10)));
      }
      tokens.template add<kFormat>(group, place.group + j, place.part);
    }
  }
};

template <class V> struct Q6_K {
  static constexpr uint32_t kType = KTOPS_TYPE_Q6_K;
  static constexpr Format kFormat{63, 5, Scaling::kTwo};
  // Scales of columns and of the block, then low and high bits as the groups of 32 columns take
  // them.
  struct Order {
    static constexpr size_t kChunkBytes = 2 * 210 * kPanelRows;
    static constexpr uint8_t kLines[53] = {48, 49, 50, 51, 52, 0,  1,  2,  3,  4,  5,  6,  7,  32,
                                           33, 34, 35, 36, 37, 38, 39, 8,  9,  10, 11, 12, 13, 14,
                                           15, 16, 17, 18, 19, 20, 21, 22, 23, 40, 41, 42, 43, 44,
                                           45, 46, 47, 24, 25, 26, 27, 28, 29, 30, 31};
  };

  template <class Source, class Tokens>
  KTOPS_INLINE static void block(const Source& source, const Place& place, Tokens& tokens) {
    typename V::I scales[4];
    source.load4(192, scales);
    const auto d = source.half(208);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int half = j / 4, part = j % 4;
      typename V::I q[8], high[8];
      source.fetch(j);
      source.load8(64 * half + 32 * (part & 1), q);
      source.load8(128 + 32 * half, high);
      Group<V> group;
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const auto left = V::sll(scales[j / 2], 24 - 16 * (j & 1) - 8 * s);
        group.scale[s] = V::mul(d, V::to_float(V::sra(left, 24)));
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const auto top = part < 2 ? V::sll(high[i], 4 - 2 * part) : V::srl(high[i], 2 * part - 4);
        group.w[i] =
            V::or_and(low_nibbles<V>(V::srl(q[i], 4 * (part >> 1))), top, V::set(bytes_of(0x30)));
      }
      tokens.template add<kFormat>(group, place.group + j, place.part);
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

// How the blocks of a type call what comes after them.
template <class Type> struct AheadOf {
  static constexpr ktops::TypeInfo kInfo = ktops::type_info(Type::kType);
  using type = BytesAhead<kInfo.block_bytes * kPanelRows / (kInfo.block_size / 32)>;
};
template <class Type>
  requires requires { Type::Order::kLines; }
struct AheadOf<Type> {
  using type = LinesAhead<typename Type::Order>;
};

template <class V, template <class> class Type, class Tokens>
KTOPS_INLINE void add_packed_blocks(const PanelArgs& args) {
  constexpr ktops::TypeInfo kInfo = ktops::type_info(Type<V>::kType);
  constexpr ktops::PackedType kPacked = ktops::packed_type(Type<V>::kType);
  constexpr size_t kGroups = kInfo.block_size / 32;
  using Ahead = typename AheadOf<Type<V>>::type;
  using Source = PackedSource<V, kPacked.words_at, Ahead>;
  Tokens tokens(args);
  const size_t num_blocks = args.cols / kInfo.block_size;
  const StreamAhead stream(args);
  for (size_t b = 0; b < num_blocks; ++b) {
    const ktops::PackedPlace place = ktops::packed_place(kPacked, b, num_blocks);
    const Ahead ahead(stream, place, b * kInfo.block_bytes * kPanelRows);
#pragma GCC unroll 2
    for (uint32_t part = 0; part < kParts<V>; ++part) {
      const Source source{args.weights + place.lines + 4 * V::kLanes * part,
                          args.weights + place.halves + 2 * V::kLanes * part, ahead};
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
