// The products of gemm.h, written once over an engine that multiplies tiles: up to kBlocks blocks
// of tokens at a time, from kMinTokens tokens on.
//
// The unpacked weights of a unit and chunk (16 KiB) stay in the first-level cache while all tokens
// of the group pass by. Meanwhile the weights of the next unit or chunk are unpacked into a second
// buffer, a tile between two steps of the engine, so that its vector work hides behind the
// products.
#pragma once

#include "../gemm.h"
#include "elementwise.h"
#include "unpack_bf16.h"

namespace {

using ktops::kBf16TileBytes;
using ktops::kBlockTokens;
using ktops::kTileSums;
using ktops::ProductArgs;

constexpr uint32_t kChunkTiles = ktops::kChunkColumns / ktops::kTileColumns;
constexpr size_t kPanelChunkBytes = size_t{kChunkTiles} * kBf16TileBytes;

// Unpacks one unit and chunk into `target`, [2 panels, kChunkTiles] tiles, a tile at a time.
class Unpacking {
 public:
  Unpacking() = default;
  Unpacking(const ktops::WeightUnit& unit, size_t first_tile, uint32_t num_tiles, size_t cols,
            uint8_t* target)
      : unpack_(unpack_of(unit.type)), panels_{unit.panels[0], unit.panels[1]}, first_(first_tile),
        cols_(cols), target_(target), tiles_(num_tiles),
        left_(unit.panels[1] == nullptr ? num_tiles : 2 * num_tiles) {}

  uint32_t left() const { return left_; }
  void step() {
    if (at_ == tiles_) {
      at_ = 0;
      panel_ = 1;
    }
    unpack_(panels_[panel_], first_ + at_, cols_,
            target_ + panel_ * kPanelChunkBytes + at_ * kBf16TileBytes);
    ++at_;
    --left_;
  }
  void finish() {
    while (left_ != 0)
      step();
  }

 private:
  UnpackGroup unpack_ = nullptr;
  const uint8_t* panels_[2] = {};
  size_t first_ = 0, cols_ = 0;
  uint8_t* target_ = nullptr;
  uint32_t tiles_ = 0, at_ = 0, panel_ = 0, left_ = 0;
};

// Spreads the steps of an unpacking evenly over the steps of the engine.
class Spread {
 public:
  Spread(Unpacking& unpacking, uint32_t num_steps)
      : unpacking_(unpacking), each_(unpacking.left()), steps_(num_steps) {}
  KTOPS_INLINE void operator()() {
    credit_ += each_;
    while (credit_ >= steps_) {
      credit_ -= steps_;
      unpacking_.step();
    }
  }

 private:
  Unpacking& unpacking_;
  const uint32_t each_, steps_;
  uint32_t credit_ = 0;
};

// All tokens times the unpacked weights of one unit and chunk.
template <class Engine, int kPanels>
void multiply_chunk(const ProductArgs& args, const uint8_t* tokens, const uint8_t* weights,
                    uint32_t num_tiles, float* sums, bool is_first, Unpacking& next) {
  constexpr uint32_t kStep = Engine::kBlocks;
  const size_t block_bytes = num_tiles * kBf16TileBytes;
  const uint32_t num_blocks = args.num_blocks();
  Spread between(next, (num_blocks + kStep - 1) / kStep * num_tiles);
  const auto run = [&]<uint32_t kCount>(uint32_t block) {
    const uint32_t rest = args.num_tokens - block * kBlockTokens;
    Engine::template run<kCount, kPanels>(
        tokens + block * block_bytes, block_bytes,
        rest < kCount * kBlockTokens ? rest : kCount * kBlockTokens, weights, kPanelChunkBytes,
        num_tiles, sums + 2 * kTileSums * block, is_first, between);
  };
  uint32_t block = 0;
  for (; block + kStep <= num_blocks; block += kStep)
    run.template operator()<kStep>(block);
  for (; block < num_blocks; ++block)
    run.template operator()<1>(block);
  next.finish();
}

template <class Engine> void multiply(const ProductArgs& args) {
  const uint32_t num_units = args.num_units;
  const size_t all_tiles = args.cols / ktops::kTileColumns;
  const size_t num_stages = (all_tiles + kChunkTiles - 1) / kChunkTiles * num_units;
  const auto tiles_of = [&](size_t stage) {
    const size_t rest = all_tiles - stage / num_units * kChunkTiles;
    return static_cast<uint32_t>(rest < kChunkTiles ? rest : kChunkTiles);
  };
  const auto buffer_of = [&](size_t stage) {
    return args.unpacked + stage % 2 * 2 * kPanelChunkBytes;
  };
  const auto unpacking_of = [&](size_t stage) {
    return Unpacking(args.units[stage % num_units], stage / num_units * kChunkTiles,
                     tiles_of(stage), args.cols, buffer_of(stage));
  };
  unpacking_of(0).finish();
  for (size_t stage = 0; stage < num_stages; ++stage) {
    const size_t unit = stage % num_units, chunk = stage / num_units;
    Unpacking next = stage + 1 < num_stages ? unpacking_of(stage + 1) : Unpacking();
    const uint8_t* tokens = args.tokens + chunk * kChunkTiles * args.num_blocks() * kBf16TileBytes;
    float* sums = args.sums + unit * args.num_blocks() * 2 * kTileSums;
    const auto run = args.units[unit].panels[1] == nullptr ? multiply_chunk<Engine, 1>
                                                           : multiply_chunk<Engine, 2>;
    run(args, tokens, buffer_of(stage), tiles_of(stage), sums, chunk == 0, next);
  }
}

// To bfloat16, to nearest even; a NaN stays one.
inline uint16_t to_bf16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded);
}

inline void store_token(const float* x, size_t cols, const ktops::TokenPlace* places,
                        size_t num_places) {
  for (size_t tile = 0; tile < cols / ktops::kTileColumns; ++tile) {
    alignas(64) uint16_t line[32];
    for (size_t i = 0; i < 32; ++i)
      line[i] = to_bf16(x[32 * tile + i]);
    for (size_t p = 0; p < num_places; ++p) {
      const ktops::TokenPlace& place = places[p];
      const size_t offset =
          ktops::tile_offset(cols, place.num_blocks, place.index / kBlockTokens, tile);
      memcpy(place.group + offset + place.index % kBlockTokens * 64, line, sizeof line);
    }
  }
}

inline void store_gated(const float* gate, const float* up, uint8_t* tile) {
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    alignas(64) uint16_t line[32];
    for (uint32_t panel = 0; panel < 2; ++panel) {
      const size_t at = panel * kTileSums + t * kPanelRows;
      float values[kPanelRows];
      swiglu(gate + at, up + at, values, kPanelRows);
      for (uint32_t i = 0; i < kPanelRows; ++i)
        line[panel * kPanelRows + i] = to_bf16(values[i]);
    }
    memcpy(tile + 64 * t, line, sizeof line);
  }
}

inline void add_rows(const float* sums, const float* weights, uint32_t num_tokens,
                     uint32_t num_rows, float* const* y) {
  for (uint32_t t = 0; t < num_tokens; ++t) {
    for (uint32_t first = 0; first < num_rows; first += kPanelRows) {
      const float* from = sums + first / kPanelRows * kTileSums + t * kPanelRows;
      const uint32_t rest = num_rows - first;
      const auto mask = static_cast<__mmask16>(rest < kPanelRows ? (1u << rest) - 1 : 0xFFFFu);
      __m512 value = _mm512_loadu_ps(from);
      if (weights != nullptr)
        value = _mm512_fmadd_ps(_mm512_set1_ps(weights[t]), value,
                                _mm512_maskz_loadu_ps(mask, y[t] + first));
      _mm512_mask_storeu_ps(y[t] + first, mask, value);
    }
  }
}

template <class Engine>
constexpr ktops::GemmKernels kGemmKernels{
    Engine::kMinTokens, Engine::begin, Engine::end, store_token,
    multiply<Engine>,   store_gated,   add_rows};

template <class Engine> constexpr ktops::KernelTable with_gemm(ktops::KernelTable table) {
  table.gemm = &kGemmKernels<Engine>;
  return table;
}

} // namespace
