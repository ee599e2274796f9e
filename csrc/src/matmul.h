#pragma once

#include "pool.h"

namespace ktops {

// y = x · weightᵀ for checked arguments. KTOPS_OK or KTOPS_ERROR_OUT_OF_MEMORY.
int32_t matmul(ktops_pool& pool, const ktops_matmul_args& args);

} // namespace ktops
