// Products of many tokens: what an instruction set with matrix units offers beside its panel
// kernels.
//
// Weights are multiplied as bfloat16, unpacked in steps of 32 columns of a panel; a group of tokens
// is stored as bfloat16 in the order in which it is read: chunks of kChunkColumns columns, in each
// chunk blocks of kBlockTokens tokens, in each block tiles of 32 columns, a line of 64 bytes a
// token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace ktops {

constexpr uint32_t kTileColumns = 32;
constexpr uint32_t kChunkColumns = 256;
constexpr uint32_t kBlockTokens = 16;
constexpr uint32_t kMaxGroupBlocks = 16;
constexpr uint32_t kUnitRows = 2 * kPanelRows;
constexpr uint32_t kMaxUnits = 4;
constexpr size_t kBf16TileBytes = 1024; // 16 lines
constexpr size_t kTileSums = size_t{kBlockTokens} * kPanelRows;

// Two panels of a weight matrix in the packed layout, or one.
struct WeightUnit {
  const uint8_t* panels[2]; // the second may be null
  uint32_t type;
};

// Room for the unpacked weights of two chunks of a unit.
constexpr size_t kUnpackedBytes = size_t{2} * kUnitRows * kChunkColumns * 2;

struct ProductArgs {
  const WeightUnit* units;
  uint32_t num_units;
  uint32_t num_tokens;
  size_t cols;           // a multiple of 32
  const uint8_t* tokens; // the group
  uint8_t* unpacked;     // kUnpackedBytes, 64-byte aligned
  // [num_units, num_blocks(), 2 panels, kBlockTokens, kPanelRows]; what is no token's is not used.
  float* sums;

  uint32_t num_blocks() const { return (num_tokens + kBlockTokens - 1) / kBlockTokens; }
};

// One place in a group of tokens, for all columns.
struct TokenPlace {
  uint8_t* group;
  uint32_t num_blocks;
  uint32_t index; // of the token in the group
};

struct GemmKernels {
  // Tokens for each expert (or each matrix) from which on this is faster than the panel kernels.
  uint32_t min_tokens;
  // Around all products of a thread.
  void (*begin)();
  void (*end)();
  // One token's float32 columns to each of its places.
  void (*store_token)(const float* x, size_t cols, const TokenPlace* places, size_t num_places);
  void (*multiply)(const ProductArgs&);
  // silu(gate) * up of 32 rows and a block of tokens into a tile of the down projection's tokens;
  // gate and up: [2 panels, kBlockTokens, kPanelRows].
  void (*store_gated)(const float* gate, const float* up, uint8_t* tile);
  // y[t] += weights[t] * sums[t], or y[t] = sums[t] without weights: num_rows rows of up to
  // kBlockTokens tokens from [2 panels, kBlockTokens, kPanelRows].
  void (*add_rows)(const float* sums, const float* weights, uint32_t num_tokens, uint32_t num_rows,
                   float* const* y);
};

// Bytes of a group of tokens.
constexpr size_t group_bytes(size_t cols, size_t num_blocks) {
  return num_blocks * kBlockTokens * cols * 2;
}

// Where the tile of a block begins in a group; `tile` counts 32 columns each.
constexpr size_t tile_offset(size_t cols, size_t num_blocks, size_t block, size_t tile) {
  constexpr size_t kChunkTiles = kChunkColumns / kTileColumns;
  const size_t first = tile / kChunkTiles * kChunkTiles, rest = cols / kTileColumns - first;
  const size_t chunk_tiles = rest < kChunkTiles ? rest : kChunkTiles;
  return (num_blocks * first + block * chunk_tiles + (tile - first)) * kBf16TileBytes;
}

} // namespace ktops
