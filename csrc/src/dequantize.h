#pragma once

#include <cstdint>

#include "ktops.h"

namespace ktops {

// count weights of a known type, a multiple of its block, as float32.
void dequantize(uint32_t type, const void* source, float* target, uint64_t count);

// Rows [first_row, first_row + num_rows), counted on through the experts, of a checked matrix.
void dequantize_rows(const ktops_matrix& matrix, uint64_t first_row, uint64_t num_rows,
                     float* target);

} // namespace ktops
