// A layer of routed experts, beside what the memory gives to the same threads and pages.
//
//   ktops_bench_layer [threads] [r1|v2-lite|demo] [experts] [packed|gguf] [token counts...]
//
// Every call takes other experts, all of them together far larger than the last-level cache. Calls
// and plain reads take turns, and medians are printed. KTOPS_ISA chooses the instruction set.
// `demo` fits in the caches and adds a line for all experts at once.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <emmintrin.h>
#include <set>
#include <string>

#include "../src/pool.h"
#include "bench_common.h"

namespace {

constexpr double kSecondsPerFigure = 0.6;
constexpr size_t kReadPiece = size_t{1} << 20;
constexpr size_t kReadAhead = 4096;

struct Shape {
  const char* name;
  size_t hidden, intermediate;
  uint32_t num_experts, top_k;
  uint32_t types[3]; // gate, up, down
};

constexpr Shape kShapes[] = {
    {"r1", 7168, 2048, 64, 8, {KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q6_K}},
    {"v2-lite", 2048, 1408, 64, 6, {KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q5_0}},
    {"demo", 256, 256, 8, 2, {KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q4_K, KTOPS_TYPE_Q6_K}},
};

struct Layer {
  ktops_pool* pool;
  Shape shape;
  Projection gate, up, down;

  Layer(ktops_pool* p, const Shape& s, uint32_t layout)
      : pool(p), shape(s), gate(p, s.types[0], s.intermediate, s.hidden, s.num_experts, layout),
        up(p, s.types[1], s.intermediate, s.hidden, s.num_experts, layout),
        down(p, s.types[2], s.hidden, s.intermediate, s.num_experts, layout) {}

  size_t expert_bytes() const {
    return gate.expert_bytes() + up.expert_bytes() + down.expert_bytes();
  }
};

// Reads `num_bytes` with all threads; SSE2 keeps up with any memory. GB/s.
double read_speed(ktops_pool* pool, const uint8_t* data, size_t num_bytes) {
  const double start = now();
  pool->run(num_bytes / kReadPiece, [&](size_t index) {
    const uint8_t* at = data + index * kReadPiece;
    __m128i sums[4] = {};
    for (const uint8_t* end = at + kReadPiece; at < end; at += 64) {
      __builtin_prefetch(at + kReadAhead);
      for (int i = 0; i < 4; ++i)
        sums[i] = _mm_xor_si128(sums[i], _mm_load_si128(reinterpret_cast<const __m128i*>(at) + i));
    }
    const __m128i all =
        _mm_xor_si128(_mm_xor_si128(sums[0], sums[1]), _mm_xor_si128(sums[2], sums[3]));
    __asm__ volatile("" : : "x"(all));
  });
  return static_cast<double>(num_bytes / kReadPiece * kReadPiece) / 1e9 / (now() - start);
}

struct Call {
  std::vector<float> x, weights, y;
  std::vector<int32_t> ids;
  size_t num_touched = 0; // different experts

  void draw(const Shape& shape, size_t num_tokens, std::mt19937& random) {
    std::set<int32_t> all;
    ids.clear();
    for (size_t t = 0; t < num_tokens; ++t) {
      std::set<int32_t> own;
      while (own.size() < shape.top_k)
        own.insert(static_cast<int32_t>(random() % shape.num_experts));
      ids.insert(ids.end(), own.begin(), own.end());
      all.insert(own.begin(), own.end());
    }
    num_touched = all.size();
  }
};

double forward(const Layer& layer, Call& call, size_t num_tokens) {
  const ktops_moe_args args{
      layer.gate.matrix,   layer.up.matrix, layer.down.matrix, call.x.data(),     call.ids.data(),
      call.weights.data(), call.y.data(),   num_tokens,        layer.shape.top_k, 0};
  const double start = now();
  if (ktops_moe_forward(layer.pool, &args) != KTOPS_OK)
    exit(1);
  return now() - start;
}

// y += weight * matrix · x in float64.
void add_product(const ktops_matrix& matrix, uint64_t expert, const std::vector<double>& x,
                 double weight, std::vector<double>& y) {
  std::vector<float> row(matrix.cols);
  for (uint64_t r = 0; r < matrix.rows; ++r) {
    ktops_dequantize_rows(&matrix, expert * matrix.rows + r, 1, row.data());
    double sum = 0;
    for (size_t c = 0; c < row.size(); ++c)
      sum += static_cast<double>(row[c]) * x[c];
    y[r] += weight * sum;
  }
}

// Relative L2 of the first token's result against float64 on the dequantised weights.
double error_of(const Layer& layer, const Call& call) {
  const Shape& shape = layer.shape;
  const std::vector<double> x(call.x.begin(), call.x.begin() + static_cast<long>(shape.hidden));
  std::vector<double> y(shape.hidden);
  for (uint32_t k = 0; k < shape.top_k; ++k) {
    const auto expert = static_cast<uint64_t>(call.ids[k]);
    std::vector<double> gate(shape.intermediate), up(shape.intermediate);
    add_product(layer.gate.matrix, expert, x, 1, gate);
    add_product(layer.up.matrix, expert, x, 1, up);
    for (size_t i = 0; i < gate.size(); ++i)
      gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    add_product(layer.down.matrix, expert, gate, static_cast<double>(call.weights[k]), y);
  }
  double difference = 0, norm = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    difference += (y[i] - static_cast<double>(call.y[i])) * (y[i] - static_cast<double>(call.y[i]));
    norm += y[i] * y[i];
  }
  return std::sqrt(difference / norm);
}

void bench_tokens(const Layer& layer, size_t num_tokens, bool with_error) {
  const Shape& shape = layer.shape;
  std::mt19937 random(static_cast<uint32_t>(num_tokens));
  Call call;
  call.x = testing::random_floats(random, num_tokens * shape.hidden);
  call.weights.assign(num_tokens * shape.top_k, 1.0f / static_cast<float>(shape.top_k));
  call.y.resize(num_tokens * shape.hidden);
  std::vector<double> seconds, rates, reads, shares;
  const double end = now() + kSecondsPerFigure;
  while (seconds.size() < 5 || now() < end) {
    call.draw(shape, num_tokens, random);
    reads.push_back(read_speed(layer.pool, layer.gate.address(), layer.gate.buffer.num_bytes));
    seconds.push_back(forward(layer, call, num_tokens));
    rates.push_back(static_cast<double>(call.num_touched * layer.expert_bytes()) / 1e9 /
                    seconds.back());
    shares.push_back(rates.back() / reads.back());
  }
  const double products = static_cast<double>(3 * num_tokens * shape.top_k * shape.hidden) *
                          static_cast<double>(shape.intermediate);
  printf("%6zu %9.3f %8.1f", num_tokens, 1e3 * median(seconds), median(rates));
  if (median(reads) > 0)
    printf(" %8.1f %7.2f", median(reads), median(shares));
  else // all of it is smaller than a piece of what is read
    printf(" %8s %7s", "-", "-");
  printf(" %9.3f", 2e-12 * products / median(seconds));
  if (with_error)
    printf("   %.1e", error_of(layer, call));
  printf("\n");
  fflush(stdout);
}

} // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  Shape shape = kShapes[0];
  for (const Shape& known : kShapes)
    if (argc > 2 && strcmp(argv[2], known.name) == 0)
      shape = known;
  if (argc > 3 && atoi(argv[3]) > 0)
    shape.num_experts = static_cast<uint32_t>(atoi(argv[3]));
  const bool packed = argc <= 4 || strcmp(argv[4], "gguf") != 0;
  std::vector<size_t> token_counts;
  for (int i = 5; i < argc; ++i)
    token_counts.push_back(static_cast<size_t>(atoi(argv[i])));
  if (token_counts.empty())
    token_counts = {1, 2, 4, 8, 16, 32, 128, 512};

  if (shape.num_experts < shape.top_k) {
    fprintf(stderr, "a token has %u experts, more than %u\n", shape.top_k, shape.num_experts);
    return 2;
  }
  std::vector<int32_t> cpus;
  for (int i = 0; i < threads; ++i)
    cpus.push_back(i);
  ktops_pool* pool = nullptr;
  const int32_t status = ktops_pool_create(cpus.data(), static_cast<uint32_t>(cpus.size()), &pool);
  if (status != KTOPS_OK) {
    fprintf(stderr, "%s\n", ktops_status_string(status));
    return 1;
  }
  {
    Layer layer(pool, shape, packed ? KTOPS_LAYOUT_PANEL16 : KTOPS_LAYOUT_GGUF);
    printf("%s, %u experts, top %u, %s layout, %d threads, %s, %.2f GB\n", shape.name,
           shape.num_experts, shape.top_k, packed ? "packed" : "file", threads,
           pool->kernels().name,
           static_cast<double>(layer.expert_bytes() * shape.num_experts) / 1e9);
    printf("tokens        ms     GB/s read GB/s   share  TFLOP/s   rel. L2\n");
    for (size_t i = 0; i < token_counts.size(); ++i)
      bench_tokens(layer, token_counts[i], i == 0);
    if (strcmp(shape.name, "demo") == 0) { // weights in cache: what is left is the fixed cost
      printf("all %u experts, 1 token\n", shape.num_experts);
      layer.shape.top_k = shape.num_experts;
      bench_tokens(layer, 1, false);
    }
  }
  ktops_pool_destroy(pool);
}
