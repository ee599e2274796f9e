#pragma once

#include "pool.h"

namespace ktops {

// The feed-forward half of a layer of ktops.h for checked arguments. KTOPS_OK or
// KTOPS_ERROR_OUT_OF_MEMORY.
int32_t ffn_decode(ktops_pool& pool, ktops_ffn_decode_args& args);

} // namespace ktops
