#pragma once

#include <cstdint>

namespace ktops {

// count weights of a known type, a multiple of its block, as float32.
void dequantize(uint32_t type, const void* source, float* target, uint64_t count);

} // namespace ktops
