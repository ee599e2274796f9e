// Which tokens go to which experts, and the working memory of such a layer.
#pragma once

#include <atomic>

#include "activations.h"
#include "scratch.h"

namespace ktops {

// Of down: so much stays in the caches of the cores until it is added up.
constexpr size_t kMostProductBytes = size_t{8} << 20;

struct Pair {
  size_t token;
  float weight;
};

// An expert with tokens; its pairs are [first_pair, last_pair).
struct ActiveExpert {
  size_t expert, first_pair, last_pair;
};

struct MoePlan {
  Activations gate_input, up_input, hidden;
  bool shared_input; // gate and up read the same form
  Pair* pairs;
  size_t* expert_ends; // [num_experts], while sorting
  ActiveExpert* experts;
  size_t num_experts = 0;
  // Products of down for each pair, [num_pairs, rows], and by output rows the experts whose
  // products are there. Null where they would take more than kMostProductBytes.
  float* products = nullptr;
  std::atomic<uint32_t>* experts_done = nullptr;

  MoePlan(Carver& carver, const ktops_moe_args& args, size_t num_pairs);
};

// Sorts the pairs by expert and lists the experts that have any.
void sort_pairs(const ktops_moe_args& args, size_t num_pairs, MoePlan& plan);

} // namespace ktops
