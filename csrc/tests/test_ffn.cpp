// The feed-forward half of a decoder layer on one instruction set (the argument) against float64.
#include <algorithm>
#include <functional>
#include <numeric>

#include "reference_layer.h"

using namespace testing;

namespace {

struct FfnShape {
  size_t hidden, inner, shared_inner, num_tokens;
  uint32_t num_experts, top_k, num_groups, chosen_groups, group_best, is_sigmoid, is_normalised;
  bool has_bias;
};

struct FfnProblem {
  FfnShape shape;
  Weight router, gate, up, down, shared_gate, shared_up, shared_down;
  std::vector<float> bias, input_norm, x;

  FfnProblem(ktops_pool* pool, const FfnShape& s) : shape(s) {
    std::mt19937 random(6);
    const uint32_t type = KTOPS_TYPE_Q8_0;
    if (s.num_experts != 0) {
      router = Weight(pool, random, KTOPS_TYPE_F32, s.num_experts, s.hidden);
      for (float& value : router.values)
        value *= 0.1f;
      memcpy(router.bytes.data(), router.values.data(), router.bytes.size());
      gate = Weight(pool, random, type, s.inner, s.hidden, s.num_experts);
      up = Weight(pool, random, type, s.inner, s.hidden, s.num_experts);
      down = Weight(pool, random, type, s.hidden, s.inner, s.num_experts);
    }
    shared_gate = Weight(pool, random, type, s.shared_inner, s.hidden);
    shared_up = Weight(pool, random, type, s.shared_inner, s.hidden);
    shared_down = Weight(pool, random, type, s.hidden, s.shared_inner);
    bias = random_floats(random, s.has_bias ? s.num_experts : 0, 0.2f);
    input_norm = random_floats(random, s.hidden, 0.5f);
    x = random_floats(random, s.num_tokens * s.hidden);
  }

  ktops_ffn_decode_args args(float* y, int32_t* ids) const {
    const ktops_router route{router.matrix,
                             shape.has_bias ? bias.data() : nullptr,
                             shape.top_k,
                             shape.num_groups,
                             shape.chosen_groups,
                             shape.group_best,
                             shape.is_sigmoid,
                             shape.is_normalised,
                             1.5f,
                             0};
    return {route,
            gate.matrix,
            up.matrix,
            down.matrix,
            shared_gate.matrix,
            shared_up.matrix,
            shared_down.matrix,
            input_norm.data(),
            kEps,
            0,
            y,
            ids,
            0,
            shape.num_tokens};
  }

  // The chosen experts and their weights.
  std::vector<std::pair<size_t, double>> chosen(const std::vector<double>& normed) const {
    std::vector<double> scores = router.times(normed), choice;
    const double peak = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores)
      total += score = shape.is_sigmoid ? 1 / (1 + std::exp(-score)) : std::exp(score - peak);
    for (size_t e = 0; e < scores.size(); ++e) {
      scores[e] /= shape.is_sigmoid ? 1 : total;
      choice.push_back(scores[e] + (shape.has_bias ? static_cast<double>(bias[e]) : 0));
    }
    keep_groups(choice);
    std::vector<size_t> order(choice.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return choice[a] > choice[b]; });
    std::vector<std::pair<size_t, double>> best;
    double sum = 0;
    for (size_t k = 0; k < shape.top_k; ++k)
      sum += scores[order[k]];
    for (size_t k = 0; k < shape.top_k; ++k)
      best.push_back({order[k], 1.5 * scores[order[k]] / (shape.is_normalised ? sum : 1)});
    return best;
  }

  std::vector<double> expected() const {
    std::vector<double> y;
    for (size_t t = 0; t < shape.num_tokens; ++t) {
      const auto normed = norm(x.data() + t * shape.hidden, input_norm);
      std::vector<double> sum = fed(shared_gate, shared_up, shared_down, 0, normed);
      if (shape.num_experts != 0)
        for (const auto& [expert, weight] : chosen(normed)) {
          const auto part = fed(gate, up, down, expert, normed);
          for (size_t i = 0; i < sum.size(); ++i)
            sum[i] += weight * part[i];
        }
      for (size_t i = 0; i < sum.size(); ++i)
        y.push_back(static_cast<double>(x[t * shape.hidden + i]) + sum[i]);
    }
    return y;
  }

 private:
  void keep_groups(std::vector<double>& choice) const {
    const size_t size = choice.size() / shape.num_groups;
    std::vector<std::pair<double, size_t>> groups;
    for (size_t g = 0; g < shape.num_groups; ++g) {
      std::vector<double> own(choice.begin() + static_cast<ptrdiff_t>(g * size),
                              choice.begin() + static_cast<ptrdiff_t>((g + 1) * size));
      std::sort(own.begin(), own.end(), std::greater<>());
      groups.push_back({std::accumulate(own.begin(), own.begin() + shape.group_best, 0.0), g});
    }
    std::sort(groups.begin(), groups.end(), std::greater<>());
    for (size_t i = shape.chosen_groups; i < groups.size(); ++i)
      std::fill_n(choice.begin() + static_cast<ptrdiff_t>(groups[i].second * size), size, -1e9);
  }
  static std::vector<double> fed(const Weight& g, const Weight& u, const Weight& d, size_t expert,
                                 const std::vector<double>& x) {
    auto hidden = g.times(x, expert);
    const auto upped = u.times(x, expert);
    for (size_t i = 0; i < hidden.size(); ++i)
      hidden[i] *= upped[i] / (1 + std::exp(-hidden[i]));
    return d.times(hidden, expert);
  }
};

void check_ffn(ktops_pool* pool, const FfnShape& shape) {
  const FfnProblem problem(pool, shape);
  Output y(problem.x.size());
  std::copy(problem.x.begin(), problem.x.end(), y.data());
  std::vector<int32_t> ids(shape.num_tokens * shape.top_k, -5);
  ktops_ffn_decode_args args = problem.args(y.data(), ids.data());
  const int32_t status = ktops_ffn_decode(pool, &args);
  CHECK(status == KTOPS_OK, "%s", ktops_status_string(status));
  CHECK(y.guards_hold(), "wrote beside the output");
  const std::vector<double> expected = problem.expected();
  const double error = relative_error(y.data(), expected.data(), expected.size());
  CHECK(error < kAllowedError, "%u experts, %u groups, %zu tokens: %.2e", shape.num_experts,
        shape.num_groups, shape.num_tokens, error);
  for (const int32_t id : ids)
    CHECK(id >= 0 && id < static_cast<int32_t>(shape.num_experts), "expert %d", id);
}

// What is not finite stays with its token.
void check_not_finite(ktops_pool* pool) {
  FfnProblem problem(pool, {64, 32, 32, 2, 8, 2, 4, 2, 2, 1, 1, true});
  problem.x[3] = INFINITY;
  std::vector<float> y = problem.x;
  std::vector<int32_t> ids(4);
  ktops_ffn_decode_args args = problem.args(y.data(), ids.data());
  CHECK(ktops_ffn_decode(pool, &args) == KTOPS_OK, "an infinity");
  bool finite = true;
  for (size_t i = 64; i < 128; ++i)
    finite = finite && std::isfinite(y[i]);
  CHECK(!std::isfinite(y[5]) && finite, "an infinity reached another token, or vanished");
}

void check_refusals(ktops_pool* pool) {
  const FfnProblem dense(pool, {64, 32, 32, 1, 8, 2, 4, 2, 2, 1, 1, true});
  std::vector<float> y = dense.x;
  int32_t ids[2];
  const auto ffn_status = [&](const auto& spoil) {
    ktops_ffn_decode_args args = dense.args(y.data(), ids);
    spoil(args);
    return ktops_ffn_decode(pool, &args);
  };
  CHECK(ffn_status([](auto& a) { a.router.top_k = 9; }) == KTOPS_ERROR_BAD_SHAPE, "top_k");
  CHECK(ffn_status([](auto& a) { a.router.num_groups = 3; }) == KTOPS_ERROR_BAD_SHAPE, "groups");
  CHECK(ffn_status([](auto& a) { a.up.num_experts = 4; }) == KTOPS_ERROR_BAD_SHAPE, "experts");
  CHECK(ffn_status([](auto& a) { a.expert_ids = nullptr; }) == KTOPS_ERROR_NULL_POINTER, "ids");
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !choose_isa(argv[1]))
    return kSkipped;
  const TestPool pool(3);
  check_ffn(pool, {64, 32, 64, 3, 16, 4, 4, 2, 2, 1, 1, true});
  check_ffn(pool, {64, 32, 64, 2, 16, 4, 4, 2, 1, 0, 0, false});
  check_ffn(pool, {512, 128, 256, 5, 64, 6, 1, 1, 1, 0, 0, false});
  check_ffn(pool, {512, 128, 256, 1, 0, 0, 0, 0, 0, 0, 0, false});
  check_not_finite(pool);
  check_refusals(pool);
  return result();
}
