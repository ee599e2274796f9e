// The packed layout: the blocks of 16 rows interleaved, so that a 64-byte line holds the same four
// bytes of each of them. README.md describes it for other readers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ktops.h"

namespace ktops {

constexpr uint32_t kPanelRows = 16;
constexpr size_t kChunkBlocks = 2; // blocks whose halves share a line

// How a block of a type is cut up: words of four bytes, one run of them, and at most one half.
struct PackedType {
  uint32_t words_at;  // first byte of the words in a block
  uint32_t num_words; // 0: the type has no packed layout
  uint32_t num_halves;
  uint32_t half_at; // first byte of the half
};

constexpr PackedType packed_type(uint32_t type) {
  switch (type) {
  case KTOPS_TYPE_Q4_0:
    return {2, 4, 1, 0};
  case KTOPS_TYPE_Q5_0:
    return {2, 5, 1, 0};
  case KTOPS_TYPE_Q8_0:
    return {2, 8, 1, 0};
  case KTOPS_TYPE_Q4_K:
    return {0, 36, 0, 0};
  case KTOPS_TYPE_Q5_K:
    return {0, 44, 0, 0};
  case KTOPS_TYPE_Q6_K:
    return {0, 52, 1, 208};
  default:
    return {0, 0, 0, 0};
  }
}

// Where a block begins in its panel: its lines, and its line (or half a line) of halves.
struct PackedPlace {
  size_t lines, halves;
};

constexpr PackedPlace packed_place(const PackedType& type, size_t block, size_t num_blocks) {
  const size_t line_bytes = type.num_words * 4 * kPanelRows;
  const size_t half_bytes = type.num_halves * 2 * kPanelRows;
  const size_t first = block / kChunkBlocks * kChunkBlocks;
  const size_t rest = num_blocks - first;
  const size_t chunk_blocks = rest < kChunkBlocks ? rest : kChunkBlocks;
  const size_t chunk = first * (line_bytes + half_bytes);
  return {chunk + (block - first) * line_bytes,
          chunk + chunk_blocks * line_bytes + (block - first) * half_bytes};
}

} // namespace ktops
