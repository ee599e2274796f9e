// From the file's layout to the packed one: words transposed in registers, halves one by one.
#pragma once

#include "panel.h"

namespace {

// The words of one block of V::kLanes rows into every kPanelRows-th word of `lines`.
template <class V, ktops::PackedType kPacked>
KTOPS_INLINE void pack_words(Rows rows, size_t offset, uint8_t* lines) {
  constexpr size_t kLineBytes = 4 * kPanelRows, kFours = kPacked.num_words / 4;
  for (size_t four = 0; four < kFours; ++four) {
    typename V::I words[4];
    V::load4(rows, offset + kPacked.words_at + 16 * four, words);
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i)
      V::store_words(lines + (4 * four + i) * kLineBytes, words[i]);
  }
  for (size_t word = 4 * kFours; word < kPacked.num_words; ++word)
    V::store_words(lines + word * kLineBytes,
                   V::word_at(rows, offset + kPacked.words_at + 4 * word));
}

template <class V, uint32_t kType> void pack_panel(const ktops::PackArgs& args) {
  constexpr ktops::TypeInfo kInfo = ktops::type_info(kType);
  constexpr ktops::PackedType kPacked = ktops::packed_type(kType);
  const uint8_t* rows[kPanelRows];
  for (uint32_t i = 0; i < kPanelRows; ++i)
    rows[i] = args.rows + i * args.row_bytes;
  const size_t num_blocks = args.row_bytes / kInfo.block_bytes;
  for (size_t b = 0; b < num_blocks; ++b) {
    const ktops::PackedPlace place = ktops::packed_place(kPacked, b, num_blocks);
    const size_t offset = b * kInfo.block_bytes;
    for (uint32_t row = 0; row < kPanelRows; row += V::kLanes)
      pack_words<V, kPacked>(rows + row, offset, args.panel + place.lines + 4 * row);
    if constexpr (kPacked.num_halves != 0)
#pragma GCC unroll 16
      for (uint32_t row = 0; row < kPanelRows; ++row)
        memcpy(args.panel + place.halves + 2 * row, rows[row] + offset + kPacked.half_at, 2);
  }
}

} // namespace
