// Where the pages of weights go, and where they are.
#pragma once

#include "pool.h"

namespace ktops {

// Touches the pages of a matrix so that each lies on its node: that of the row in its middle, or
// one after another where rows have no node. To be called before anything is written there. Does
// nothing with one node. 0, or why the kernel refuses to be told about nodes: then pages only go
// where the threads that touch them run.
int32_t place(const ktops_pool& pool, const ktops_buffer& buffer, const ktops_matrix& matrix);

// The kernel then leaves the pages of a buffer where they are. 0, or why it refuses.
int32_t hold(const ktops_buffer& buffer);

// Adds the bytes of a matrix to wanted[num_nodes] by the node that they belong to, and those that
// are there to there[num_nodes]. 0, or why the kernel refuses to tell.
int32_t count_placed(const ktops_pool& pool, const ktops_buffer& buffer, const ktops_matrix& matrix,
                     uint64_t* wanted, uint64_t* there);

} // namespace ktops
