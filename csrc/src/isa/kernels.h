// The kernels, written once over a vector type V whose lanes are rows of the weight matrix.
//
// A panel of V::kLanes rows is read in pieces of 16 bytes a row, transposed so that word i of every
// row stands in one register, and unpacked into 16 registers of weights: 32 columns as pairs of
// int16, or 16 columns of float. Those stay in registers while the tokens of a tile pass by.
#pragma once

#include "elementwise.h"
#include "quantized.h"
#include "unquantized.h"

namespace {

template <class V> constexpr ktops::KernelTable make_kernel_table(const char* name) {
  ktops::KernelTable table{name, V::kLanes, quantize, swiglu, {}};
  table.panel[KTOPS_TYPE_F32] = float_panel<V, F32>;
  table.panel[KTOPS_TYPE_F16] = float_panel<V, F16>;
  table.panel[KTOPS_TYPE_BF16] = float_panel<V, BF16>;
  table.panel[KTOPS_TYPE_Q4_0] = quantized_panel<V, Q4_0>;
  table.panel[KTOPS_TYPE_Q5_0] = quantized_panel<V, Q5_0>;
  table.panel[KTOPS_TYPE_Q8_0] = quantized_panel<V, Q8_0>;
  table.panel[KTOPS_TYPE_Q4_K] = quantized_panel<V, Q4_K>;
  table.panel[KTOPS_TYPE_Q5_K] = quantized_panel<V, Q5_K>;
  table.panel[KTOPS_TYPE_Q6_K] = quantized_panel<V, Q6_K>;
  return table;
}

} // namespace
