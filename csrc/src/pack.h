// From GGUF's bytes to a matrix in its layout.
#pragma once

#include "pool.h"

namespace ktops {

// source: the whole matrix in the file's layout. For checked arguments.
void pack(ktops_pool& pool, const ktops_matrix& target, const uint8_t* source);

// The rows of ktops_read for checked arguments. KTOPS_OK, KTOPS_ERROR_OUT_OF_MEMORY, or
// KTOPS_ERROR_FILE with file_errno set.
int32_t read_packed(ktops_pool& pool, ktops_read_args& args);

} // namespace ktops
