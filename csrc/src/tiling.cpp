#include "tiling.h"

#include <algorithm>

namespace ktops {
namespace {

constexpr size_t kTileBytes = size_t{2} << 20; // beyond it the records of a tile come from memory
// Few tokens: many short jobs, because what a thread still reads when the others are done is lost.
// Many tokens: longer ones, because each brings their activations into its cache anew.
constexpr size_t kFewTokens = 16, kShortJobsPerThread = 32, kLongJobsPerThread = 8;
constexpr size_t kSmallestJobBytes = size_t{16} << 10;

// Below this a thread finishes as early alone: waking another takes tens of microseconds, more on
// a virtual machine.
constexpr double kSmallJobNs = 30'000;
constexpr double kBytesPerNs = 20, kProductsPerNs = 100; // of one core, roughly

} // namespace

WeightRows weight_rows(const ktops_matrix& matrix, size_t expert, const KernelTable& kernels) {
  const size_t row_bytes = bytes_of_row(matrix);
  const auto* data = static_cast<const uint8_t*>(matrix.data) + expert * matrix.rows * row_bytes;
  const bool packed = matrix.layout == KTOPS_LAYOUT_PANEL16;
  return {data,
          row_bytes,
          matrix.rows,
          matrix.cols,
          kernels.row_panel[matrix.type],
          packed ? kernels.packed_panel[matrix.type] : nullptr};
}

uint32_t tile_tokens(size_t record_bytes) {
  const size_t fitting = kTileBytes / std::max<size_t>(record_bytes, 1) / 4 * 4;
  return static_cast<uint32_t>(std::clamp<size_t>(fitting, 8, kMaxTileTokens));
}

size_t rows_per_job(size_t rows, size_t row_bytes, size_t num_tokens, size_t step,
                    size_t num_threads) {
  const size_t jobs_each = num_tokens <= kFewTokens ? kShortJobsPerThread : kLongJobsPerThread;
  const size_t for_balance = divide_up(rows, num_threads * jobs_each);
  const size_t for_length = divide_up(kSmallestJobBytes, std::max<size_t>(row_bytes, 1));
  return divide_up(std::max<size_t>({for_balance, for_length, 1}), step) * step;
}

bool is_small_job(double weight_bytes, double products) {
  return std::max(weight_bytes / kBytesPerNs, products / kProductsPerNs) < kSmallJobNs;
}

} // namespace ktops
