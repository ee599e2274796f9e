#pragma once

#include <cstddef>

#include "ktops.h"

namespace ktops {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Anonymous zeroed memory, from huge pages where the kernel grants them; null when there is none.
// huge_page_errno: why not, 0 otherwise.
void* map_memory(size_t num_bytes, int32_t* huge_page_errno);
void unmap_memory(void* address, size_t num_bytes);

// Spreads the pages of a mapping over the NUMA nodes the process may use. Returns how many there
// are (1: nothing to spread over, or refused) and why it was refused.
uint32_t spread_over_nodes(void* address, size_t num_bytes, int32_t* numa_errno);

} // namespace ktops
