// What an instruction set offers: the one thing each unit in isa/ exports.
//
// Activations travel as one record a token. A record starts with lines of 64 bytes:
//   int16 form, for quantised weights: a line holds 32 columns, the 16 even ones before the 16 odd
//     ones, because a 32-bit word of weight bytes splits into the pairs (0, 2) and (1, 3); after
//     the lines comes a GroupMeta for each of them;
//   float form, for F32, F16 and BF16 weights: a line holds 16 columns, zero beyond the last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "blocks.h"
#include "layout.h"

namespace ktops {

constexpr size_t kLineBytes = 64;
constexpr size_t kIntColumns = 32;   // columns in a line of the int16 form
constexpr size_t kFloatColumns = 16; // columns in a line of the float form
constexpr uint32_t kMaxTileTokens = 64;

// x[i] = scale * q[i]; sum = scale * Σ q[i], what the minimum of a weight group is multiplied with.
struct GroupMeta {
  float scale;
  float sum;
};

// One panel (up to kPanelRows rows, all columns) times up to kMaxTileTokens tokens.
struct PanelArgs {
  const uint8_t* weights;
  size_t row_bytes;
  size_t cols;
  uint32_t num_rows;
  uint32_t num_tokens;
  const uint8_t* next;        // what the caller reads behind this panel, called into the cache
  const void* const* records; // [num_tokens]
  float* out;                 // [num_tokens, kPanelRows], 64-byte aligned
};

// kPanelRows rows of the file's layout, row_bytes each, into a panel of the packed one.
struct PackArgs {
  const uint8_t* rows;
  size_t row_bytes;
  uint8_t* panel;
};

struct KernelTable {
  const char* name;
  // num_groups groups of 32 activations into their lines and metas.
  void (*quantize)(const float* x, size_t num_groups, void* lines, GroupMeta* metas);
  // out = silu(gate) * up
  void (*swiglu)(const float* gate, const float* up, float* out, size_t count);
  // By ktops_type; null where there is no such type, or no packed layout for it.
  void (*row_panel[kNumTypes])(const PanelArgs&);    // rows in the file's layout
  void (*packed_panel[kNumTypes])(const PanelArgs&); // kPanelRows rows, packed
  void (*pack[kNumTypes])(const PackArgs&);
};

extern const KernelTable kScalarKernels, kAvx2Kernels, kAvx512Kernels, kAvx512VnniKernels;

} // namespace ktops
