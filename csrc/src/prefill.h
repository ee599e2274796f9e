// Many tokens at once: products through the tiles of gemm.h.
#pragma once

#include "pool.h"

namespace ktops {

// Whether these calls are better served here than by the panel kernels.
bool prefill_serves(const ktops_pool& pool, const ktops_matmul_args& args);
bool prefill_serves(const ktops_pool& pool, const ktops_moe_args& args);

// What matmul.h and moe.h say of their namesakes, for calls that are served.
int32_t prefill_matmul(ktops_pool& pool, const ktops_matmul_args& args);
// Tokens are copied to their experts in waves of so many bytes, or of one group where that is more.
constexpr size_t kWaveBytes = size_t{256} << 20;
int32_t prefill_moe(ktops_pool& pool, const ktops_moe_args& args, size_t wave_bytes = kWaveBytes);

} // namespace ktops
