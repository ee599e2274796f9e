// Every weight type on one instruction set (the argument) against float64.
#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

// A weight type in one of the layouts.
struct Kind {
  uint32_t type, layout;
  const char* name() const { return type_name(type); }
  const char* layout_name() const { return layout == KTOPS_LAYOUT_GGUF ? "gguf" : "panel16"; }
  ktops_matrix matrix(const void* data, size_t rows, size_t cols, size_t num_matrices = 1) const {
    return {data, rows, cols, type, layout, static_cast<uint32_t>(num_matrices), 0};
  }
};

struct Case {
  size_t num_tokens, rows, cols; // cols in units of the block, at least 32
};

// Of the root of the squares of the products that are added up: terms that cancel do not count. A
// group with an outlier keeps fewer bits of its other activations.
// The error of a single value has no others to average with.
double allowed_error(uint32_t type, bool has_outliers, size_t num_values, bool is_bf16) {
  if (block_of(type).size == 1)
    return 2e-6;
  if (is_bf16)
    return 5e-3;
  return has_outliers ? 3e-4 : (num_values == 1 ? 1e-4 : 5e-5);
}

double root_of_squares(const float* weights, const float* x, const Case& shape) {
  double sum = 0;
  for (size_t t = 0; t < shape.num_tokens; ++t)
    for (size_t r = 0; r < shape.rows; ++r)
      for (size_t c = 0; c < shape.cols; ++c) {
        const double product = static_cast<double>(weights[r * shape.cols + c]) *
                               static_cast<double>(x[t * shape.cols + c]);
        sum += product * product;
      }
  return std::sqrt(sum);
}

// Magnitudes that differ from group to group: outliers, zeros, and everything between.
std::vector<float> rough_floats(std::mt19937& random, size_t count) {
  std::vector<float> x = random_floats(random, count);
  for (size_t i = 0; i < count; ++i) {
    const size_t group = i / 32;
    x[i] *= group % 5 == 0 ? 0.0f : (group % 5 == 1 ? 1e-6f : 1.0f);
    if (i % 97 == 0)
      x[i] *= 1000.0f;
  }
  return x;
}

void check_case(ktops_pool* pool, Kind kind, const Case& shape, const std::vector<float>& x,
                const char* what) {
  std::mt19937 random(static_cast<uint32_t>(kind.type * 1000 + shape.rows));
  const auto [num_tokens, rows, cols] = shape;
  const std::vector<uint8_t> weights = random_weights(random, kind.type, rows * cols);
  const std::vector<uint8_t> laid = laid_out(pool, kind.matrix(nullptr, rows, cols), weights);
  const Guarded guarded_weights(laid.data(), laid.size());
  const Guarded guarded_x(x.data(), x.size() * sizeof(float));
  Output y(num_tokens * rows);
  const ktops_matmul_args args{kind.matrix(guarded_weights.data(), rows, cols), guarded_x.floats(),
                               y.data(), num_tokens};
  const int32_t status = ktops_matmul(pool, &args);
  CHECK(status == KTOPS_OK, "%s: %s", kind.name(), ktops_status_string(status));
  CHECK(y.guards_hold(), "%s wrote beside its output", kind.name());
  const std::vector<float> plain = dequantized(kind.type, weights, rows * cols);
  const std::vector<double> expected =
      reference_matmul(plain.data(), x.data(), num_tokens, rows, cols);
  double squares = 0;
  for (size_t i = 0; i < y.size(); ++i)
    squares += std::pow(static_cast<double>(y[i]) - expected[i], 2);
  const double size = root_of_squares(plain.data(), x.data(), shape);
  const double error = size == 0 ? std::sqrt(squares) : std::sqrt(squares) / size;
  CHECK(error <= allowed_error(kind.type, strcmp(what, "rough") == 0, y.size(),
                               in_bf16(pool, kind.type, num_tokens)),
        "%s %s, %s x, [%zu, %zu] x %zu tokens: %.2e", kind.name(), kind.layout_name(), what, rows,
        cols, num_tokens, error);
}

void check_type(ktops_pool* pool, Kind kind) {
  std::mt19937 random(7);
  const size_t unit = std::max<size_t>(block_of(kind.type).size, 32);
  const Case shapes[] = {
      {1, 1, unit},   {1, 16, unit},  {1, 37, 3 * unit},  {2, 33, unit},  {3, 64, 2 * unit},
      {4, 15, unit},  {5, 17, unit},  {7, 100, 2 * unit}, {8, 32, unit},  {67, 50, 2 * unit},
      {15, 17, unit}, {16, 16, unit}, {17, 64, 3 * unit}, {31, 33, unit}, {32, 40, 2 * unit},
      {33, 96, unit}, {290, 20, unit}};
  // Whole blocks of tokens and every rest of one.
  for (size_t num_tokens = 48; num_tokens < 64; ++num_tokens)
    check_case(pool, kind, {num_tokens, 35, unit}, random_floats(random, num_tokens * unit),
               "normal");
  for (const Case& shape : shapes) {
    const size_t count = shape.num_tokens * shape.cols;
    check_case(pool, kind, shape, random_floats(random, count), "normal");
    check_case(pool, kind, shape, rough_floats(random, count), "rough");
  }
  const Case shape{5, 40, unit};
  for (const float scale : {1e-30f, 1e-10f, 1e10f, 1e30f})
    check_case(pool, kind, shape, random_floats(random, 5 * unit, scale), "scaled");
  check_case(pool, kind, shape, std::vector<float>(5 * unit, 0.0f), "zero");
  check_case(pool, kind, shape, std::vector<float>(5 * unit, -3.5f), "constant");
}

// The largest weights and activations there are, all of one sign: sums must not overflow.
void check_extremes(ktops_pool* pool, Kind kind) {
  const Block block = block_of(kind.type);
  const size_t rows = 20, cols = 2 * block.size;
  for (const uint8_t fill : {uint8_t{0x00}, uint8_t{0xFF}, uint8_t{0x80}, uint8_t{0x7F}}) {
    std::vector<uint8_t> weights(rows * cols / block.size * block.bytes, fill);
    for (size_t at = 0; at < weights.size(); at += block.bytes) {
      put_half(weights.data() + at + (kind.type == KTOPS_TYPE_Q6_K ? 208 : 0), 0x2000); // 2^-7
      if (kind.type == KTOPS_TYPE_Q4_K || kind.type == KTOPS_TYPE_Q5_K)
        put_half(weights.data() + at + 2, 0x2000);
      if (kind.type == KTOPS_TYPE_Q6_K)
        memset(weights.data() + at + 192, 0x7F, 16); // the scales
    }
    const std::vector<float> plain = dequantized(kind.type, weights, rows * cols);
    const std::vector<uint8_t> laid = laid_out(pool, kind.matrix(nullptr, rows, cols), weights);
    for (const size_t num_tokens : {1, 6, 20}) {
      const std::vector<float> x(num_tokens * cols, num_tokens == 1 ? 1.5f : -1.5f);
      Output y(num_tokens * rows);
      const ktops_matmul_args args{kind.matrix(laid.data(), rows, cols), x.data(), y.data(),
                                   num_tokens};
      ktops_matmul(pool, &args);
      const auto expected = reference_matmul(plain.data(), x.data(), num_tokens, rows, cols);
      const double error = relative_error(y.data(), expected.data(), expected.size());
      CHECK(error < (in_bf16(pool, kind.type, num_tokens) ? 5e-3 : 1e-5),
            "%s filled with %x, %zu tokens: %.2e", kind.name(), fill, num_tokens, error);
    }
  }
}

// Rows of unquantised weights may have any length.
void check_odd_columns(ktops_pool* pool, Kind kind) {
  std::mt19937 random(8);
  for (const size_t cols : {1, 2, 15, 16, 17, 31, 100})
    for (const size_t num_tokens : {1, 4, 6})
      check_case(pool, kind, {num_tokens, 19, cols}, random_floats(random, num_tokens * cols),
                 "odd");
}

// The result for a token must not depend on what it is computed together with.
void check_batch_invariance(ktops_pool* pool, Kind kind) {
  std::mt19937 random(9);
  const size_t rows = 48, cols = 512, num_tokens = 71;
  const std::vector<uint8_t> weights = random_weights(random, kind.type, rows * cols);
  const std::vector<uint8_t> laid = laid_out(pool, kind.matrix(nullptr, rows, cols), weights);
  const std::vector<float> x = random_floats(random, num_tokens * cols);
  // The fewest that are computed in the same way.
  const size_t few =
      in_bf16(pool, kind.type, num_tokens) ? pool->kernels().gemm->min_tokens : size_t{1};
  std::vector<float> together(num_tokens * rows), alone(few * rows);
  ktops_matmul_args args{kind.matrix(laid.data(), rows, cols), x.data(), together.data(),
                         num_tokens};
  ktops_matmul(pool, &args);
  for (size_t t = 0; t + few <= num_tokens; ++t) {
    args.x = x.data() + t * cols;
    args.y = alone.data();
    args.num_tokens = few;
    ktops_matmul(pool, &args);
    CHECK(memcmp(alone.data(), together.data() + t * rows, few * rows * sizeof(float)) == 0,
          "%s: token %zu", kind.name(), t);
  }
}

// Several matrices, each with its own activations: the same as one call for each.
void check_many_matrices(ktops_pool* pool, Kind kind) {
  std::mt19937 random(11);
  const size_t rows = 37, cols = 256, num_matrices = 5;
  const std::vector<uint8_t> weights =
      random_weights(random, kind.type, num_matrices * rows * cols);
  const std::vector<uint8_t> laid =
      laid_out(pool, kind.matrix(nullptr, rows, cols, num_matrices), weights);
  const size_t matrix_bytes = laid.size() / num_matrices;
  for (const size_t num_tokens : {1, 3, 70}) {
    const std::vector<float> x = random_floats(random, num_matrices * num_tokens * cols);
    std::vector<float> together(num_matrices * num_tokens * rows), alone(num_tokens * rows);
    ktops_matmul_args args{kind.matrix(laid.data(), rows, cols, num_matrices), x.data(),
                           together.data(), num_tokens};
    CHECK(ktops_matmul(pool, &args) == KTOPS_OK, "%s", kind.name());
    for (size_t i = 0; i < num_matrices; ++i) {
      args.weight.data = laid.data() + i * matrix_bytes;
      args.weight.num_experts = 1;
      args.x = x.data() + i * num_tokens * cols;
      args.y = alone.data();
      ktops_matmul(pool, &args);
      CHECK(memcmp(alone.data(), together.data() + i * num_tokens * rows,
                   alone.size() * sizeof(float)) == 0,
            "%s: matrix %zu of %zu tokens", kind.name(), i, num_tokens);
    }
  }
}

// Rows shared out over nodes, some left over from a panel: the same bits.
void check_nodes(size_t num_tokens) {
  const Kind kind{KTOPS_TYPE_Q8_0, KTOPS_LAYOUT_PANEL16};
  const size_t rows = 1537, cols = 2176, num_matrices = 2;
  std::mt19937 random(12);
  const TestPool pool(4);
  const std::vector<uint8_t> laid =
      laid_out(pool, kind.matrix(nullptr, rows, cols, num_matrices),
               random_weights(random, kind.type, num_matrices * rows * cols));
  const std::vector<float> x = random_floats(random, num_matrices * num_tokens * cols);
  std::vector<float> plain(num_matrices * num_tokens * rows), shared(plain.size());
  ktops_matmul_args args{kind.matrix(laid.data(), rows, cols, num_matrices), x.data(), plain.data(),
                         num_tokens};
  CHECK(ktops_matmul(pool, &args) == KTOPS_OK, "one node");
  args.y = shared.data();
  for (const auto& nodes : {std::vector<int32_t>{0, 1, 0, 1}, std::vector<int32_t>{0, 2, 5, 5}}) {
    pool->lock();
    pool->set_nodes(nodes.data());
    pool->unlock();
    CHECK(ktops::nodes_of_rows(rows, cols / 32 * 34, pool->num_nodes()) > 1, "not shared out");
    CHECK(ktops_matmul(pool, &args) == KTOPS_OK, "several nodes");
    CHECK(memcmp(plain.data(), shared.data(), plain.size() * sizeof(float)) == 0,
          "%zu tokens, %u nodes: they differ", num_tokens, pool->num_nodes());
  }
}

void check_bad_numbers(ktops_pool* pool, Kind kind) {
  std::mt19937 random(10);
  const size_t rows = 16, cols = 512;
  const std::vector<uint8_t> weights = random_weights(random, kind.type, rows * cols);
  std::vector<float> x = random_floats(random, 3 * cols), y(3 * rows);
  x[cols + 40] = NAN;
  for (size_t c = 0; c < cols; ++c)
    x[2 * cols + c] = 1e-40f; // beyond the precision of floats: some small number will do
  const std::vector<uint8_t> laid = laid_out(pool, kind.matrix(nullptr, rows, cols), weights);
  const ktops_matmul_args args{kind.matrix(laid.data(), rows, cols), x.data(), y.data(), 3};
  ktops_matmul(pool, &args);
  for (size_t r = 0; r < rows; ++r) {
    CHECK(std::isfinite(y[r]), "%s: a NaN spread to another token", kind.name());
    CHECK(std::isnan(y[rows + r]), "%s: a NaN was lost", kind.name());
    CHECK(std::fabs(y[2 * rows + r]) < 1e-30f, "%s: tiny x gave %g", kind.name(),
          static_cast<double>(y[2 * rows + r]));
  }
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !choose_isa(argv[1]))
    return kSkipped;
  const TestPool pool(2);
  for (const uint32_t type : kAllTypes) {
    const bool is_float = block_of(type).size == 1;
    for (const uint32_t layout : {KTOPS_LAYOUT_GGUF, KTOPS_LAYOUT_PANEL16}) {
      if (is_float && layout != KTOPS_LAYOUT_GGUF)
        continue;
      const Kind kind{type, layout};
      check_type(pool, kind);
      check_batch_invariance(pool, kind);
      check_many_matrices(pool, kind);
      check_bad_numbers(pool, kind);
      if (is_float)
        check_odd_columns(pool, kind);
      else
        check_extremes(pool, kind);
    }
  }
  for (const size_t num_tokens : {1, 3, 100})
    check_nodes(num_tokens);
  return result();
}
