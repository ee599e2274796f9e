#pragma once

#include <cstddef>

#include "ktops.h"

namespace ktops {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Anonymous zeroed memory, from huge pages where the kernel grants them; null when there is none.
// huge_page_errno: why not, 0 otherwise.
void* map_memory(size_t num_bytes, int32_t* huge_page_errno);
void unmap_memory(void* address, size_t num_bytes);

} // namespace ktops
