#pragma once

#include "pool.h"

namespace ktops {

// The attention of ktops.h for checked arguments. KTOPS_OK or KTOPS_ERROR_OUT_OF_MEMORY.
int32_t mla_decode(ktops_pool& pool, const ktops_mla_decode_args& args);

} // namespace ktops
