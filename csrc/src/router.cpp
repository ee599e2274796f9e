#include "router.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

namespace ktops {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

void softmax(const KernelTable& kernels, float* values, size_t count) {
  const float peak = *std::max_element(values, values + count);
  for (size_t i = 0; i < count; ++i)
    values[i] -= peak;
  kernels.exponentials(values, values, count);
  float total = 0;
  for (size_t i = 0; i < count; ++i)
    total += values[i];
  for (size_t i = 0; i < count; ++i)
    values[i] /= total;
}

void sigmoid(const KernelTable& kernels, float* values, size_t count) {
  for (size_t i = 0; i < count; ++i)
    values[i] = -values[i];
  kernels.exponentials(values, values, count);
  for (size_t i = 0; i < count; ++i)
    values[i] = 1 / (1 + values[i]);
}

float group_score(const ktops_router& router, const float* choice, size_t size) {
  float best[kMostGroupBest];
  const float* end = std::partial_sort_copy(choice, choice + size, best, best + router.group_best,
                                            std::greater<float>());
  return std::accumulate(static_cast<const float*>(best), end, 0.0f);
}

// Takes the experts of the worst groups out of the choice.
void limit_to_groups(const ktops_router& router, float* choice, float* group_scores) {
  const size_t num_groups = router.num_groups, size = router.weight.rows / num_groups;
  for (size_t group = 0; group < num_groups; ++group)
    group_scores[group] = group_score(router, choice + group * size, size);
  for (size_t dropped = router.chosen_groups; dropped < num_groups; ++dropped) {
    const auto worst = static_cast<size_t>(
        std::min_element(group_scores, group_scores + num_groups) - group_scores);
    group_scores[worst] = std::numeric_limits<float>::infinity();
    std::fill_n(choice + worst * size, size, kNothing);
  }
}

} // namespace

void route(const KernelTable& kernels, const ktops_router& router, float* logits, float* choice,
           int32_t* expert_ids, float* expert_weights) {
  const size_t num_experts = router.weight.rows;
  (router.is_sigmoid != 0 ? sigmoid : softmax)(kernels, logits, num_experts);
  for (size_t e = 0; e < num_experts; ++e)
    choice[e] = logits[e] + (router.bias == nullptr ? 0.0f : router.bias[e]);
  if (router.chosen_groups < router.num_groups)
    limit_to_groups(router, choice, choice + num_experts);
  float total = 1e-20f;
  for (uint32_t k = 0; k < router.top_k; ++k) {
    const auto best = static_cast<size_t>(std::max_element(choice, choice + num_experts) - choice);
    choice[best] = kNothing;
    expert_ids[k] = static_cast<int32_t>(best);
    expert_weights[k] = logits[best];
    total += logits[best];
  }
  const float factor = router.is_normalised != 0 ? router.scale / total : router.scale;
  for (uint32_t k = 0; k < router.top_k; ++k)
    expert_weights[k] *= factor;
}

} // namespace ktops
