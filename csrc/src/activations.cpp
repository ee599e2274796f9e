#include "activations.h"

#include <algorithm>
#include <cstring>

namespace ktops {
namespace {

// A piece takes less than a microsecond; a multiple of both forms' groups.
constexpr size_t kPieceColumns = 2048;

// An odd number of lines: records of consecutive tokens then start in different cache sets, so that
// the same column of all tokens in a tile can stay in the first-level cache.
size_t round_to_odd_lines(size_t num_bytes) {
  return ((num_bytes + kLineBytes - 1) / kLineBytes | 1) * kLineBytes;
}

} // namespace

Activations::Activations(Carver& carver, uint32_t type, size_t cols, size_t num_tokens)
    : cols_(cols), integer_(is_integer(type)) {
  if (integer_)
    record_bytes_ = round_to_odd_lines(cols / kIntColumns * (kLineBytes + sizeof(GroupMeta)));
  else
    record_bytes_ = round_to_odd_lines((cols + kFloatColumns - 1) / kFloatColumns * kLineBytes);
  records_ = carver.take<std::byte>(num_tokens * record_bytes_);
}

void Activations::store(const KernelTable& kernels, size_t token, size_t first_col, const float* x,
                        size_t count) const {
  std::byte* record = records_ + token * record_bytes_;
  if (integer_) {
    const size_t group = first_col / kIntColumns;
    auto* metas = reinterpret_cast<GroupMeta*>(record + cols_ / kIntColumns * kLineBytes);
    kernels.quantize(x, count / kIntColumns, record + group * kLineBytes, metas + group);
    return;
  }
  std::byte* line = record + first_col * sizeof(float);
  memcpy(line, x, count * sizeof(float));
  const size_t rest = count % kFloatColumns;
  if (rest != 0)
    memset(line + count * sizeof(float), 0, (kFloatColumns - rest) * sizeof(float));
}

size_t Activations::num_pieces(size_t num_tokens) const {
  return num_tokens * ((cols_ + kPieceColumns - 1) / kPieceColumns);
}

void Activations::store_piece(const KernelTable& kernels, size_t index, const float* x) const {
  const size_t pieces = num_pieces(1), token = index / pieces;
  const size_t first_col = index % pieces * kPieceColumns;
  store(kernels, token, first_col, x + token * cols_ + first_col,
        std::min(kPieceColumns, cols_ - first_col));
}

} // namespace ktops
