// Activations in the form the kernels of a weight type read (see kernel_table.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_table.h"
#include "scratch.h"

namespace ktops {

class Activations {
 public:
  Activations() = default;
  // Room for num_tokens records that weights of `type` with `cols` columns are multiplied with.
  Activations(Carver& carver, uint32_t type, size_t cols, size_t num_tokens);

  const void* record(size_t token) const { return records_ + token * record_bytes_; }
  size_t record_bytes() const { return record_bytes_; }
  // True when weights of that type read the same form.
  bool serves(uint32_t type) const { return is_integer(type) == integer_; }

  // Columns [first_col, first_col + count) of a token; first_col is a multiple of 32, count too
  // unless they are the last.
  void store(const KernelTable& kernels, size_t token, size_t first_col, const float* x,
             size_t count) const;

  // All records in pieces, for as many threads as there are: piece `index` below
  // num_pieces(num_tokens) of x: [num_tokens, cols].
  size_t num_pieces(size_t num_tokens) const;
  void store_piece(const KernelTable& kernels, size_t index, const float* x) const;

 private:
  static bool is_integer(uint32_t type) { return type_info(type).block_size > 1; }

  std::byte* records_ = nullptr;
  size_t record_bytes_ = 0;
  size_t cols_ = 0;
  bool integer_ = false;
};

} // namespace ktops
