// The mixture of experts on one instruction set (the argument) against float64.
#include <algorithm>
#include <set>

#include "../src/moe_plan.h"
#include "../src/prefill.h"
#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

struct Shape {
  uint32_t gate_type, up_type, down_type;
  size_t num_experts, hidden, intermediate, num_tokens;
  uint32_t top_k;
};

struct Problem {
  Shape shape;
  std::vector<uint8_t> gate, up, down;
  std::vector<float> x, weights;
  std::vector<int32_t> ids;
  uint32_t layout = KTOPS_LAYOUT_GGUF;
  std::vector<uint8_t> packed[3]; // gate, up, down in the layout, where it is not the file's

  Problem(const Shape& s, uint32_t seed, bool some_skipped) : shape(s) {
    std::mt19937 random(seed);
    const size_t count = s.num_experts * s.hidden * s.intermediate;
    gate = random_weights(random, s.gate_type, count);
    up = random_weights(random, s.up_type, count);
    down = random_weights(random, s.down_type, count);
    x = random_floats(random, s.num_tokens * s.hidden);
    weights = random_floats(random, s.num_tokens * s.top_k);
    for (size_t i = 0; i < s.num_tokens * s.top_k; ++i)
      ids.push_back(
          some_skipped && random() % 4 == 0 ? -1 : static_cast<int32_t>(random() % s.num_experts));
  }

  // Quantised matrices from here on in the packed layout.
  void pack(ktops_pool* pool) {
    layout = KTOPS_LAYOUT_PANEL16;
    const ktops_moe_args file = args(nullptr);
    packed[0] = laid_out(pool, file.gate, gate);
    packed[1] = laid_out(pool, file.up, up);
    packed[2] = laid_out(pool, file.down, down);
  }

  ktops_moe_args args(float* y) const {
    const auto matrix = [this](int which, const std::vector<uint8_t>& data, uint32_t type,
                               size_t rows, size_t cols) {
      const uint32_t own = block_of(type).size == 1 ? uint32_t{KTOPS_LAYOUT_GGUF} : layout;
      const std::vector<uint8_t>& bytes = packed[which].empty() ? data : packed[which];
      return ktops_matrix{
          bytes.data(), rows, cols, type, own, static_cast<uint32_t>(shape.num_experts), 0};
    };
    return {matrix(0, gate, shape.gate_type, shape.intermediate, shape.hidden),
            matrix(1, up, shape.up_type, shape.intermediate, shape.hidden),
            matrix(2, down, shape.down_type, shape.hidden, shape.intermediate),
            x.data(),
            ids.data(),
            weights.data(),
            y,
            shape.num_tokens,
            shape.top_k,
            0};
  }

  std::vector<double> expected() const {
    const size_t hidden = shape.hidden, inner = shape.intermediate, each = hidden * inner;
    const std::vector<float> g = dequantized(shape.gate_type, gate, shape.num_experts * each);
    const std::vector<float> u = dequantized(shape.up_type, up, shape.num_experts * each);
    const std::vector<float> d = dequantized(shape.down_type, down, shape.num_experts * each);
    std::vector<double> y(shape.num_tokens * hidden);
    for (size_t p = 0; p < ids.size(); ++p) {
      if (ids[p] < 0)
        continue;
      const size_t token = p / shape.top_k, at = static_cast<size_t>(ids[p]) * each;
      const float* token_x = x.data() + token * hidden;
      const auto gated = reference_matmul(g.data() + at, token_x, 1, inner, hidden);
      const auto upped = reference_matmul(u.data() + at, token_x, 1, inner, hidden);
      for (size_t r = 0; r < hidden; ++r)
        for (size_t i = 0; i < inner; ++i)
          y[token * hidden + r] += static_cast<double>(weights[p]) *
                                   static_cast<double>(d[at + r * inner + i]) * gated[i] /
                                   (1 + std::exp(-gated[i])) * upped[i];
    }
    return y;
  }
};

double allowed_error(ktops_pool* pool, const Problem& problem) {
  std::set<int32_t> active(problem.ids.begin(), problem.ids.end());
  active.erase(-1);
  const Shape& shape = problem.shape;
  const size_t tokens_each = problem.ids.size() / std::max<size_t>(active.size(), 1);
  for (const uint32_t type : {shape.gate_type, shape.up_type, shape.down_type})
    if (!in_bf16(pool, type, tokens_each))
      return 3e-4;
  return 5e-3;
}

void check_problem(ktops_pool* pool, Problem& problem) {
  const Shape& shape = problem.shape;
  Output y(shape.num_tokens * shape.hidden);
  const ktops_moe_args args = problem.args(y.data());
  const int32_t status = ktops_moe_forward(pool, &args);
  CHECK(status == KTOPS_OK, "%s", ktops_status_string(status));
  CHECK(y.guards_hold(), "wrote beside the output");
  const std::vector<double> expected = problem.expected();
  const double error = relative_error(y.data(), expected.data(), expected.size());
  CHECK(error < allowed_error(pool, problem),
        "%s %s %s, %zu experts [%zu, %zu], %zu tokens, top %u: %.2e", type_name(shape.gate_type),
        type_name(shape.up_type), type_name(shape.down_type), shape.num_experts, shape.intermediate,
        shape.hidden, shape.num_tokens, shape.top_k, error);
  problem.pack(pool);
  Output packed_y(y.size());
  const ktops_moe_args packed_args = problem.args(packed_y.data());
  CHECK(ktops_moe_forward(pool, &packed_args) == KTOPS_OK, "packed");
  CHECK(packed_y.guards_hold(), "wrote beside the output");
  CHECK(memcmp(y.data(), packed_y.data(), y.size() * sizeof(float)) == 0,
        "%s %s %s: the layouts differ", type_name(shape.gate_type), type_name(shape.up_type),
        type_name(shape.down_type));
}

void check_shape(ktops_pool* pool, const Shape& shape) {
  Problem problem(shape, 3, true);
  check_problem(pool, problem);
}

// All tokens of many on the last expert of many.
void check_one_busy_expert(ktops_pool* pool) {
  Problem problem({KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q6_K, 64, 256, 256, 40, 1}, 7,
                  false);
  problem.ids.assign(problem.ids.size(), 63);
  check_problem(pool, problem);
}

void check_skipping_everything(ktops_pool* pool) {
  Problem problem({KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q8_0, 4, 64, 32, 3, 2}, 4, false);
  problem.ids.assign(problem.ids.size(), -1);
  Output y(3 * 64);
  const ktops_moe_args args = problem.args(y.data());
  CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "all experts skipped");
  for (size_t i = 0; i < y.size(); ++i)
    CHECK(y[i] == 0.0f, "value %zu is %g", i, static_cast<double>(y[i]));
}

void check_ordinary_network(ktops_pool* pool) {
  Problem problem({KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q6_K, 1, 256, 256, 5, 1}, 5, false);
  problem.weights.assign(5, 1.0f);
  Output with_ids(5 * 256), without(5 * 256);
  ktops_moe_args args = problem.args(with_ids.data());
  CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "with ids");
  args.expert_ids = nullptr;
  args.expert_weights = nullptr;
  args.y = without.data();
  CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "without ids");
  CHECK(memcmp(with_ids.data(), without.data(), 5 * 256 * sizeof(float)) == 0, "they differ");
}

// The same bits with any number of threads and in every repetition.
void check_determinism() {
  Problem problem({KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q6_K, 8, 512, 512, 40, 4}, 6, true);
  std::vector<float> first(40 * 512), again(40 * 512);
  {
    const TestPool alone(1);
    problem.pack(alone);
    const ktops_moe_args args = problem.args(first.data());
    ktops_moe_forward(alone, &args);
  }
  for (const uint32_t num_threads : {1u, 2u, 5u}) {
    const TestPool pool(num_threads);
    for (int i = 0; i < 3; ++i) {
      const ktops_moe_args args = problem.args(again.data());
      ktops_moe_forward(pool, &args);
      CHECK(memcmp(first.data(), again.data(), first.size() * sizeof(float)) == 0,
            "%u threads, run %d", num_threads, i);
    }
  }
}

// Rows of experts that are large enough, and odd, shared out over nodes: the same bits.
void check_nodes(size_t num_tokens) {
  Problem problem({KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q8_0, 3, 1504, 1536, num_tokens, 2},
                  9, true);
  std::vector<float> plain(num_tokens * 1504), shared(num_tokens * 1504);
  const TestPool pool(4);
  problem.pack(pool);
  const ktops_moe_args args = problem.args(plain.data());
  CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "one node");
  for (const auto& nodes : {std::vector<int32_t>{0, 1, 0, 1}, std::vector<int32_t>{6, 6, 6, 2}}) {
    CHECK(ktops::nodes_of_rows(1536, 1504 / 32 * 34, 2) == 2, "the rows are not shared out");
    pool->lock();
    pool->set_nodes(nodes.data());
    pool->unlock();
    const ktops_moe_args again = problem.args(shared.data());
    CHECK(ktops_moe_forward(pool, &again) == KTOPS_OK, "two nodes");
    CHECK(memcmp(plain.data(), shared.data(), plain.size() * sizeof(float)) == 0,
          "%zu tokens, nodes %d and %d: they differ", num_tokens, nodes[0], nodes[3]);
  }
}

// More products than are kept give the bits of a few.
void check_many_products(ktops_pool* pool) {
  if (pool->kernels().gemm != nullptr)
    return; // so many tokens are for the tiles
  constexpr size_t kRows = 1024, kTokens = 700, kEach = 100;
  Problem problem({KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q8_0, 3, kRows, 32, kTokens, 3}, 10,
                  true);
  CHECK(problem.ids.size() * kRows * sizeof(float) > ktops::kMostProductBytes, "they are kept");
  Output whole(kTokens * kRows), pieces(kTokens * kRows);
  ktops_moe_args args = problem.args(whole.data());
  CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "all tokens");
  CHECK(whole.guards_hold(), "wrote beside the output");
  args.num_tokens = kEach;
  for (size_t token = 0; token < kTokens; token += kEach) {
    args.x = problem.x.data() + token * kRows;
    args.expert_ids = problem.ids.data() + token * 3;
    args.expert_weights = problem.weights.data() + token * 3;
    args.y = pieces.data() + token * kRows;
    CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "some tokens");
  }
  CHECK(memcmp(whole.data(), pieces.data(), whole.size() * sizeof(float)) == 0, "they differ");
}

// Many waves give the bits of one.
void check_waves(ktops_pool* pool) {
  if (pool->kernels().gemm == nullptr)
    return;
  Problem problem({KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q6_K, 4, 256, 256, 530, 3}, 8,
                  true);
  problem.pack(pool);
  Output whole(530 * 256), in_waves(530 * 256);
  ktops_moe_args args = problem.args(whole.data());
  CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "in one wave");
  args.y = in_waves.data();
  for (const size_t wave_bytes : {size_t{1}, size_t{200} << 10, size_t{300} << 10}) {
    std::fill_n(in_waves.data(), in_waves.size(), -1.0f);
    pool->lock();
    CHECK(ktops::prefill_moe(*pool, args, wave_bytes) == KTOPS_OK, "%zu bytes", wave_bytes);
    pool->unlock();
    CHECK(in_waves.guards_hold(), "wrote beside the output");
    CHECK(memcmp(whole.data(), in_waves.data(), whole.size() * sizeof(float)) == 0,
          "waves of %zu bytes give other sums", wave_bytes);
  }
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !choose_isa(argv[1]))
    return kSkipped;
  const TestPool pool(2);
  constexpr uint32_t kQ4K = KTOPS_TYPE_Q4_K, kQ6K = KTOPS_TYPE_Q6_K;
  check_shape(pool, {kQ4K, kQ4K, kQ6K, 8, 256, 256, 1, 4});
  check_shape(pool, {kQ4K, KTOPS_TYPE_Q5_K, kQ4K, 5, 512, 256, 9, 3});
  check_shape(pool, {kQ4K, kQ4K, KTOPS_TYPE_Q8_0, 4, 256, 96, 70, 2});
  check_shape(pool, {KTOPS_TYPE_Q5_0, KTOPS_TYPE_Q4_0, KTOPS_TYPE_Q5_0, 3, 96, 160, 6, 2});
  check_shape(pool, {KTOPS_TYPE_Q8_0, KTOPS_TYPE_F16, KTOPS_TYPE_BF16, 3, 64, 33, 5, 2});
  check_shape(pool, {KTOPS_TYPE_F32, KTOPS_TYPE_F32, KTOPS_TYPE_F32, 2, 37, 21, 5, 3});
  check_shape(pool, {kQ4K, kQ4K, kQ6K, 1, 256, 256, 130, 1});
  check_shape(pool, {kQ4K, kQ4K, kQ6K, 256, 256, 256, 2, 3}); // nearly all experts unused
  check_shape(pool, {KTOPS_TYPE_Q5_0, KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q4_0, 2, 224, 352, 3, 2});
  // Around the edges of tiles of 16 and groups of 256 tokens.
  check_shape(pool, {kQ4K, KTOPS_TYPE_Q5_K, kQ6K, 4, 512, 256, 100, 2});
  check_shape(pool, {KTOPS_TYPE_Q8_0, KTOPS_TYPE_Q4_0, KTOPS_TYPE_Q5_0, 3, 96, 160, 50, 2});
  check_shape(pool, {kQ6K, kQ4K, kQ4K, 1, 256, 256, 33, 1});
  check_shape(pool, {kQ4K, kQ4K, kQ6K, 1, 256, 256, 530, 1});
  check_shape(pool, {kQ4K, kQ4K, kQ6K, 2, 256, 256, 40, 20}); // an expert more than once
  check_one_busy_expert(pool);
  check_skipping_everything(pool);
  check_ordinary_network(pool);
  check_determinism();
  for (const size_t num_tokens : {1, 70})
    check_nodes(num_tokens);
  check_many_products(pool);
  check_waves(pool);
  return result();
}
