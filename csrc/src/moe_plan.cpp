#include "moe_plan.h"

#include <algorithm>

#include "expert_pairs.h"
#include "nodes.h"

namespace ktops {

MoePlan::MoePlan(Carver& carver, const ktops_moe_args& args, size_t num_pairs) {
  gate_input = Activations(carver, args.gate.type, args.gate.cols, args.num_tokens);
  shared_input = gate_input.serves(args.up.type);
  up_input =
      shared_input ? gate_input : Activations(carver, args.up.type, args.up.cols, args.num_tokens);
  hidden = Activations(carver, args.down.type, args.down.cols, num_pairs);
  pairs = carver.take<Pair>(num_pairs);
  expert_ends = carver.take<size_t>(args.gate.num_experts);
  experts = carver.take<ActiveExpert>(std::min<size_t>(num_pairs, args.gate.num_experts));
  if (num_pairs * args.down.rows * sizeof(float) > kMostProductBytes)
    return;
  products = carver.take<float>(num_pairs * args.down.rows);
  experts_done = carver.take<std::atomic<uint32_t>>(args.down.rows / kPanelRows + 1 + kMaxNodes);
}

// A counting sort, stable in the tokens.
void sort_pairs(const ktops_moe_args& args, size_t num_pairs, MoePlan& plan) {
  const size_t num_experts = args.gate.num_experts;
  std::fill_n(plan.expert_ends, num_experts, 0);
  for (size_t p = 0; p < num_pairs; ++p)
    if (expert_id(args, p) >= 0)
      ++plan.expert_ends[expert_id(args, p)];
  size_t start = 0;
  for (size_t e = 0; e < num_experts; ++e) {
    const size_t count = plan.expert_ends[e];
    if (count != 0)
      plan.experts[plan.num_experts++] = {e, start, start + count};
    plan.expert_ends[e] = start;
    start += count;
  }
  for (size_t p = 0; p < num_pairs; ++p) {
    if (expert_id(args, p) < 0)
      continue;
    plan.pairs[plan.expert_ends[expert_id(args, p)]++] = {p / args.top_k, expert_weight(args, p)};
  }
}

} // namespace ktops
