// Which tokens go to which experts in which groups, and the working memory of such a layer.
#pragma once

#include "prefill_jobs.h"

namespace ktops {

constexpr uint32_t kSkipped = UINT32_MAX;

struct PairPlace {
  uint32_t group, index; // kSkipped: no expert
};

struct SortedExpert {
  size_t index, num_tokens, first; // among the sorted pairs
};

struct PrefillPlan {
  size_t num_pairs, wave_blocks;
  PairPlace* places;     // [num_pairs], in the caller's order
  uint32_t* tokens;      // [num_pairs], sorted
  float* weights;        // [num_pairs], sorted
  SortedExpert* experts; // [num_experts]
  TokenGroup* groups;
  size_t* ranks; // [num_experts]: where an expert came to stand
  uint8_t *input, *hidden;
  std::atomic<uint32_t>* turns; // by output rows: the group that may add
  ThreadSpace* spaces;
  size_t num_active = 0, num_groups = 0;

  PrefillPlan(Carver& carver, const ktops_moe_args& args, size_t num_threads, size_t wave_bytes);
};

// How many experts have tokens; experts beyond the first 4096 may share a bit with another.
size_t count_experts(const ktops_moe_args& args);

// Sorts the pairs, stable in the tokens, and cuts them into groups.
void sort_pairs(const ktops_moe_args& args, PrefillPlan& plan);

} // namespace ktops
