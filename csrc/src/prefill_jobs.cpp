#include "prefill_jobs.h"

#include <algorithm>
#include <cstring>

namespace ktops {
namespace {

constexpr size_t kJobsPerThread = 6;
constexpr size_t kUnitPanels = 2;

// Whether all rows of a matrix come as packed panels.
bool is_all_packed(const ktops_matrix& matrix) {
  return matrix.layout == KTOPS_LAYOUT_PANEL16 && matrix.rows % kPanelRows == 0;
}

} // namespace

TokenGroup* cut_groups(size_t matrix, size_t first, size_t num_tokens, size_t first_block,
                       TokenGroup* groups) {
  const size_t num_groups = divide_up(num_tokens, kMaxGroupTokens);
  const size_t each = divide_up(divide_up(num_tokens, num_groups), kBlockTokens) * kBlockTokens;
  for (size_t done = 0; done < num_tokens; done += each) {
    const auto count = static_cast<uint32_t>(std::min(each, num_tokens - done));
    *groups = {matrix, first + done, first_block, count};
    first_block += groups++->num_blocks();
  }
  return groups;
}

ThreadSpace::ThreadSpace(Carver& carver, std::initializer_list<const ktops_matrix*> matrices) {
  unpacked_ = carver.take<uint8_t>(kUnpackedBytes);
  sums_ = carver.take<float>(kMaxUnits * kUnitPanels * kMaxGroupBlocks * kTileSums);
  for (const ktops_matrix* matrix : matrices)
    if (!is_all_packed(*matrix))
      panel_bytes_ = std::max(panel_bytes_, kPanelRows * bytes_of_row(*matrix));
  if (panel_bytes_ != 0) {
    panels_ = carver.take<uint8_t>(kMaxUnits * kUnitPanels * panel_bytes_);
    short_panel_ = carver.take<uint8_t>(panel_bytes_);
  }
}

const uint8_t* ThreadSpace::packed(const KernelTable& kernels, const ktops_matrix& matrix,
                                   const WeightRows& weights, size_t row, size_t panel) const {
  const uint8_t* rows = weights.row(row);
  const bool is_whole = row + kPanelRows <= weights.rows;
  if (matrix.layout == KTOPS_LAYOUT_PANEL16 && is_whole)
    return rows;
  if (!is_whole) { // repeats the last row; the copies' results are dropped
    for (size_t i = 0; i < kPanelRows; ++i)
      memcpy(short_panel_ + i * weights.row_bytes, weights.row(std::min(row + i, weights.rows - 1)),
             weights.row_bytes);
    rows = short_panel_;
  }
  uint8_t* target = panels_ + panel * panel_bytes_;
  kernels.pack[matrix.type]({rows, weights.row_bytes, target});
  return target;
}

uint32_t ThreadSpace::make_units(const KernelTable& kernels, const ktops_matrix& matrix,
                                 size_t expert, size_t row, size_t num_rows, WeightUnit* units,
                                 uint32_t first_unit) const {
  const WeightRows weights = weight_rows(matrix, expert, kernels);
  const size_t num_panels = divide_up(num_rows, kPanelRows);
  const auto num_units = static_cast<uint32_t>(divide_up(num_panels, kUnitPanels));
  for (size_t i = 0; i < num_units; ++i)
    units[first_unit + i] = {{nullptr, nullptr}, matrix.type};
  for (size_t i = 0; i < num_panels; ++i)
    units[first_unit + i / kUnitPanels].panels[i % kUnitPanels] =
        packed(kernels, matrix, weights, row + i * kPanelRows, first_unit * kUnitPanels + i);
  return num_units;
}

uint32_t units_per_job(size_t num_units, size_t num_groups, uint32_t most, size_t num_threads) {
  while (most > 1 && divide_up(num_units, most) * num_groups < kJobsPerThread * num_threads)
    most /= 2;
  return most;
}

} // namespace ktops
