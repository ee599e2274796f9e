// The (token, expert) pairs of a layer, in the caller's order.
#pragma once

#include <cstddef>

#include "ktops.h"

namespace ktops {

// Negative: the pair is skipped.
inline int32_t expert_id(const ktops_moe_args& args, size_t pair) {
  return args.expert_ids == nullptr ? 0 : args.expert_ids[pair];
}

inline float expert_weight(const ktops_moe_args& args, size_t pair) {
  return args.expert_weights == nullptr ? 1.0f : args.expert_weights[pair];
}

} // namespace ktops
