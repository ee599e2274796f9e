#pragma once

#include "kernel_table.h"
#include "ktops.h"

namespace ktops {

constexpr uint32_t kMostGroupBest = 8; // of ktops_router.group_best

// The experts of one token and their weights, [top_k] each. logits: [num_experts], overwritten;
// choice: room for as many and the groups.
void route(const KernelTable& kernels, const ktops_router& router, float* logits, float* choice,
           int32_t* expert_ids, float* expert_weights);

} // namespace ktops
