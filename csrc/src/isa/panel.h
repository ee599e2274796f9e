// What all panel kernels share. Include from a unit in isa/ only: everything in these headers has
// internal linkage, so that code compiled for one instruction set never stands in for another's.
#pragma once

#include <cstring>

#include "../kernel_table.h"

namespace {

using ktops::GroupMeta;
using ktops::PanelArgs;

#define KTOPS_INLINE [[gnu::always_inline]] inline

using Rows = const uint8_t* const*;

// Pointers to the rows of a panel; a short panel repeats its last row, the caller drops the copies.
template <class V> KTOPS_INLINE void find_rows(const PanelArgs& args, const uint8_t** rows) {
  const uint8_t* row = args.weights;
  for (uint32_t i = 0; i < V::kLanes; ++i) {
    rows[i] = row;
    row += i + 1 < args.num_rows ? args.row_bytes : 0;
  }
}

// Calls the next panel into the second-level cache, piece by piece, while this one is computed: the
// hardware does not foresee so many rows side by side. Without a next panel it asks again for lines
// of this one, which costs nothing.
template <class V, size_t kPieceBytes> class NextPanel {
 public:
  explicit NextPanel(const PanelArgs& args)
      : at_(args.weights + (args.has_next ? V::kLanes * args.row_bytes : 0)) {}

  // Called for each piece of kPieceBytes a row.
  KTOPS_INLINE void fetch() {
    constexpr size_t kLines = (V::kLanes * kPieceBytes + 63) / 64;
    if constexpr (V::kLanes > 1) {
#pragma GCC unroll 16
      for (size_t line = 0; line < kLines; ++line)
        __builtin_prefetch(at_ + 64 * line, 0, 2);
      at_ += 64 * kLines;
      // Keeps the loads of a group behind its own few lines; bunched up they hold up one another.
      __asm__ volatile("" ::: "memory");
    }
  }

 private:
  const uint8_t* at_;
};

} // namespace
