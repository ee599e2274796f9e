// What all panel kernels share. Include from a unit in isa/ only: everything in these headers has
// internal linkage, so that code compiled for one instruction set never stands in for another's.
#pragma once

#include <cstring>

#include "../kernel_table.h"

namespace {

using ktops::GroupMeta;
using ktops::PanelArgs;

#define KTOPS_INLINE [[gnu::always_inline]] inline

using ktops::kPanelRows;

using Rows = const uint8_t* const*;

// A panel is computed V::kLanes rows at a time, its parts.
template <class V> constexpr uint32_t kParts = kPanelRows / V::kLanes;

// Pointers to the rows of a panel; a short panel repeats its last row, the caller drops the copies.
template <class V>
KTOPS_INLINE void find_rows(const PanelArgs& args, const uint8_t* (*rows)[V::kLanes]) {
  const uint8_t* row = args.weights;
  for (uint32_t i = 0; i < kPanelRows; ++i) {
    rows[i / V::kLanes][i % V::kLanes] = row;
    row += i + 1 < args.num_rows ? args.row_bytes : 0;
  }
}

} // namespace
