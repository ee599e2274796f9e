#include "prefill_plan.h"

#include <algorithm>
#include <new>

#include "expert_pairs.h"

namespace ktops {
namespace {

// Experts by their number of tokens, most first.
void sort_experts(const ktops_moe_args& args, PrefillPlan& plan) {
  const size_t num_experts = args.gate.num_experts;
  for (size_t e = 0; e < num_experts; ++e)
    plan.experts[e] = {e, 0, 0};
  for (size_t p = 0; p < plan.num_pairs; ++p)
    if (expert_id(args, p) >= 0)
      ++plan.experts[expert_id(args, p)].num_tokens;
  std::sort(plan.experts, plan.experts + num_experts,
            [](const SortedExpert& a, const SortedExpert& b) {
              return a.num_tokens != b.num_tokens ? a.num_tokens > b.num_tokens : a.index < b.index;
            });
  size_t first = 0;
  for (size_t rank = 0; rank < num_experts; ++rank) {
    SortedExpert& expert = plan.experts[rank];
    plan.ranks[expert.index] = rank;
    expert.first = first;
    first += expert.num_tokens;
    plan.num_active += expert.num_tokens != 0;
  }
}

} // namespace

PrefillPlan::PrefillPlan(Carver& carver, const ktops_moe_args& args, size_t num_threads,
                         size_t wave_bytes) {
  num_pairs = args.num_tokens * args.top_k;
  const size_t max_experts = std::min<size_t>(num_pairs, args.gate.num_experts);
  const size_t most_groups = max_groups(num_pairs, max_experts);
  const size_t most_blocks = num_pairs / kBlockTokens + most_groups;
  const size_t fitting = wave_bytes / group_bytes(args.gate.cols, 1);
  wave_blocks = std::min(most_blocks, std::max<size_t>(fitting, kMaxGroupBlocks));
  places = carver.take<PairPlace>(num_pairs);
  tokens = carver.take<uint32_t>(num_pairs);
  weights = carver.take<float>(num_pairs);
  experts = carver.take<SortedExpert>(args.gate.num_experts);
  groups = carver.take<TokenGroup>(most_groups);
  ranks = carver.take<size_t>(args.gate.num_experts);
  input = carver.take<uint8_t>(group_bytes(args.gate.cols, wave_blocks));
  hidden = carver.take<uint8_t>(group_bytes(args.down.cols, wave_blocks));
  turns = carver.take<std::atomic<uint32_t>>(divide_up(args.down.rows, kUnitRows));
  spaces = carver.take<ThreadSpace>(num_threads);
  for (size_t i = 0; i < num_threads; ++i) {
    const ThreadSpace space(carver, {&args.gate, &args.up, &args.down});
    if (spaces != nullptr)
      new (spaces + i) ThreadSpace(space);
  }
}

size_t count_experts(const ktops_moe_args& args) {
  uint64_t bits[64] = {};
  for (size_t p = 0; p < args.num_tokens * args.top_k; ++p)
    if (const int32_t id = expert_id(args, p); id >= 0)
      bits[id / 64 % 64] |= uint64_t{1} << (id % 64);
  size_t count = 0;
  for (const uint64_t word : bits)
    count += static_cast<size_t>(__builtin_popcountll(word));
  return count;
}

void sort_pairs(const ktops_moe_args& args, PrefillPlan& plan) {
  sort_experts(args, plan);
  TokenGroup* end = plan.groups;
  for (size_t rank = 0, block = 0; rank < plan.num_active; ++rank) {
    const SortedExpert& expert = plan.experts[rank];
    end = cut_groups(expert.index, expert.first, expert.num_tokens, block, end);
    block = end[-1].first_block + end[-1].num_blocks();
  }
  plan.num_groups = static_cast<size_t>(end - plan.groups);
  for (size_t p = 0; p < plan.num_pairs; ++p) {
    plan.places[p] = {kSkipped, 0};
    if (expert_id(args, p) < 0)
      continue;
    const size_t slot = plan.experts[plan.ranks[expert_id(args, p)]].first++;
    plan.tokens[slot] = static_cast<uint32_t>(p / args.top_k);
    plan.weights[slot] = expert_weight(args, p);
    plan.places[p].index = static_cast<uint32_t>(slot);
    plan.places[p].group = 0;
  }
  // From places among all pairs to places in a group.
  const auto find_group = [&](uint32_t slot) {
    const TokenGroup* after = std::upper_bound(
        plan.groups, end, slot, [](uint32_t s, const TokenGroup& g) { return s < g.first; });
    return static_cast<uint32_t>(after - plan.groups) - 1;
  };
  for (size_t p = 0; p < plan.num_pairs; ++p)
    if (PairPlace& place = plan.places[p]; place.group != kSkipped) {
      place.group = find_group(place.index);
      place.index -= static_cast<uint32_t>(plan.groups[place.group].first);
    }
}

} // namespace ktops
