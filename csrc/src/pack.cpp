#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <unistd.h>

#include "tiling.h"

namespace ktops {
namespace {

constexpr size_t kPieceBytes = size_t{256} << 10; // stays in the second-level cache until packed

// A matrix cut into pieces of whole panels, none reaching from one expert into the next.
struct Pieces {
  size_t row_bytes, rows, rows_each, num_each; // of an expert

  explicit Pieces(const ktops_matrix& matrix) : row_bytes(bytes_of_row(matrix)), rows(matrix.rows) {
    rows_each = std::max<size_t>(kPieceBytes / row_bytes / kPanelRows, 1) * kPanelRows;
    num_each = divide_up(rows, rows_each);
  }
  size_t bytes() const { return rows_each * row_bytes; }
};

// num_rows rows in the file's layout to `target`; only the last panel of an expert may be short.
void pack_rows(const KernelTable& kernels, uint32_t type, size_t row_bytes, const uint8_t* rows,
               size_t num_rows, uint8_t* target) {
  size_t row = 0;
  for (; row + kPanelRows <= num_rows; row += kPanelRows)
    kernels.pack[type]({rows + row * row_bytes, row_bytes, target + row * row_bytes});
  memcpy(target + row * row_bytes, rows + row * row_bytes, (num_rows - row) * row_bytes);
}

// False with errno set when the system refuses, 0 when the file has ended.
bool read_fully(int file, uint8_t* target, size_t num_bytes, uint64_t offset) {
  while (num_bytes != 0) {
    const ssize_t count = pread(file, target, num_bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0) {
      errno = count == 0 ? 0 : errno;
      return false;
    }
    target += count;
    offset += static_cast<uint64_t>(count);
    num_bytes -= static_cast<size_t>(count);
  }
  return true;
}

} // namespace

void pack(ktops_pool& pool, const ktops_matrix& target, const uint8_t* source) {
  const Pieces pieces(target);
  auto* data = static_cast<uint8_t*>(const_cast<void*>(target.data));
  pool.run(pieces.num_each * target.num_experts, [&](size_t index) {
    const size_t first = index % pieces.num_each * pieces.rows_each;
    const size_t num_rows = std::min(pieces.rows_each, pieces.rows - first);
    const size_t at = (index / pieces.num_each * pieces.rows + first) * pieces.row_bytes;
    if (target.layout == KTOPS_LAYOUT_GGUF)
      memcpy(data + at, source + at, num_rows * pieces.row_bytes);
    else
      pack_rows(pool.kernels(), target.type, pieces.row_bytes, source + at, num_rows, data + at);
  });
}

int32_t read_packed(ktops_pool& pool, ktops_read_args& args) {
  const ktops_matrix& target = args.target;
  const Pieces pieces(target);
  const bool direct = target.layout == KTOPS_LAYOUT_GGUF;
  const size_t num_slots = pool.num_threads();
  std::byte* buffers = direct ? nullptr : pool.scratch().reserve(num_slots * pieces.bytes());
  if (!direct && buffers == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  auto* data = static_cast<uint8_t*>(const_cast<void*>(target.data));
  const uint64_t end = args.first_row + args.num_rows;
  std::atomic<uint64_t> next_row{args.first_row};
  std::atomic<int32_t> failure{-1};

  // The piece that begins at `row`, or was cut short by the first row: its end.
  const auto piece_end = [&](uint64_t row) {
    const uint64_t expert_end = (row / pieces.rows + 1) * pieces.rows;
    return std::min({row + pieces.rows_each, expert_end, end});
  };
  pool.run(num_slots, [&](size_t slot) {
    uint64_t row = next_row.load(std::memory_order_relaxed);
    while (row < end && failure.load(std::memory_order_relaxed) < 0) {
      const uint64_t last = piece_end(row);
      if (!next_row.compare_exchange_weak(row, last, std::memory_order_relaxed))
        continue;
      const size_t at = row * pieces.row_bytes, num_bytes = (last - row) * pieces.row_bytes;
      auto* buffer =
          direct ? data + at : reinterpret_cast<uint8_t*>(buffers) + slot * pieces.bytes();
      if (!read_fully(args.file, buffer, num_bytes, args.offset + at)) {
        failure.store(errno, std::memory_order_relaxed);
        return;
      }
      if (!direct)
        pack_rows(pool.kernels(), target.type, pieces.row_bytes, buffer, last - row, data + at);
      row = next_row.load(std::memory_order_relaxed);
    }
  });
  args.file_errno = std::max(failure.load(std::memory_order_relaxed), 0);
  return failure.load(std::memory_order_relaxed) < 0 ? KTOPS_OK : KTOPS_ERROR_FILE;
}

} // namespace ktops
