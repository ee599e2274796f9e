#pragma once

#include "pool.h"

namespace ktops {

// The mixture of experts of ktops.h for checked arguments. KTOPS_OK or KTOPS_ERROR_OUT_OF_MEMORY.
int32_t moe_forward(ktops_pool& pool, const ktops_moe_args& args);

} // namespace ktops
