// What an instruction set offers: the one thing each unit in isa/ exports.
//
// Activations travel as one record a token. A record starts with lines of 64 bytes:
//   integer form, for quantised weights: a line holds 32 columns of 16-bit integers,
//     q = 256 * high + low, the 32 signed high bytes before the 32 signed low ones, because the
//     instructions that multiply bytes with four products a lane want them so; after the lines
//     comes a GroupMeta for each of them;
//   float form, for F32, F16 and BF16 weights: a line holds 16 columns, zero beyond the last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "blocks.h"
#include "gemm.h"
#include "layout.h"

namespace ktops {

constexpr size_t kLineBytes = 64;
constexpr size_t kIntColumns = 32;   // columns in a line of the integer form
constexpr size_t kFloatColumns = 16; // columns in a line of the float form
constexpr uint32_t kMaxTileTokens = 64;

// Largest |q|: both of its bytes are then signed ones.
constexpr float kLargestInteger = 127 * 256 + 127;

// x[i] = scale * q[i]; sum = scale * Σ q[i], what the minimum of a weight group is multiplied with.
// The negated sums of q, whole and of the two halves of 16 columns, take the bias out of weights
// that are stored with one.
struct GroupMeta {
  float scale;
  float sum;
  int32_t minus_sum;
  int32_t minus_half_sums[2];
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

// sums[s] += Σ_r weights[s, r] · rows[r], in the order of the rows.
struct WeightedRowsArgs {
  const float* weights; // [num_sums, num_rows], rows weight_stride apart
  size_t weight_stride;
  const float* rows; // [num_rows, cols], row_stride apart
  size_t row_stride;
  float* sums; // [num_sums, cols], sum_stride apart, 64-byte aligned each
  size_t sum_stride;
  size_t num_sums, num_rows, cols;
};

struct KernelTable {
  const char* name;
  // num_groups groups of 32 activations into their lines and metas.
  void (*quantize)(const float* x, size_t num_groups, void* lines, GroupMeta* metas);
  // out = silu(gate) * up
  void (*swiglu)(const float* gate, const float* up, float* out, size_t count);
  // out = x / sqrt(mean(x²) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, size_t count);
  // out = e^x
  void (*exponentials)(const float* x, float* out, size_t count);
  void (*add_weighted_rows)(const WeightedRowsArgs&);
  // By ktops_type; null where there is no such type, or no packed layout for it.
  void (*row_panel[kNumTypes])(const PanelArgs&);    // rows in the file's layout
  void (*packed_panel[kNumTypes])(const PanelArgs&); // kPanelRows rows, packed
  void (*pack[kNumTypes])(const PackArgs&);
  // For many tokens; null: the panel kernels serve any number.
  const GemmKernels* gemm = nullptr;
};

extern const KernelTable kScalarKernels, kAvx2Kernels, kAvx512Kernels, kAvx512VnniKernels,
    kAvx512Bf16Kernels, kAmxKernels;

} // namespace ktops
