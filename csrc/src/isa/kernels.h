// The kernels, written once over a vector type V whose lanes are rows of the weight matrix.
//
// Word i of V::kLanes rows stands in one register: in the packed layout that is a load, in the
// file's own a transposition of 16 bytes of each row. It is unpacked into registers of weights, 32
// columns as 8 registers of bytes or 16 columns as 16 of float, which serve all the tokens of a
// tile.
#pragma once

#include "elementwise.h"
#include "pack.h"
#include "quantized.h"
#include "unquantized.h"
#include "weighted_rows.h"

namespace {

template <class V, template <class> class Type>
constexpr void add_quantized(ktops::KernelTable& table) {
  constexpr uint32_t kType = Type<V>::kType;
  table.row_panel[kType] = quantized_rows<V, Type>;
  table.packed_panel[kType] = quantized_packed<V, Type>;
  table.pack[kType] = pack_panel<V, kType>;
}

template <class V> constexpr ktops::KernelTable make_kernel_table(const char* name) {
  ktops::KernelTable table{name, quantize<V>, swiglu, rms_norm, exponentials, add_weighted_rows<V>,
                           {},   {},          {}};
  table.row_panel[KTOPS_TYPE_F32] = float_rows<V, F32>;
  table.row_panel[KTOPS_TYPE_F16] = float_rows<V, F16>;
  table.row_panel[KTOPS_TYPE_BF16] = float_rows<V, BF16>;
  add_quantized<V, Q4_0>(table);
  add_quantized<V, Q5_0>(table);
  add_quantized<V, Q8_0>(table);
  add_quantized<V, Q4_K>(table);
  add_quantized<V, Q5_K>(table);
  add_quantized<V, Q6_K>(table);
  return table;
}

} // namespace
