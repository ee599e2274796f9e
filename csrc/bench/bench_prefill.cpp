// Prompts through a layer of routed experts, and the products of tiles alone.
//
//   ktops_bench_prefill [threads] [experts] [token counts...]
//
// The layer has DeepSeek-R1's shape. Beside it stand the peak of AMX, measured in the same run with
// the same threads, and what the tile kernels reach when nobody waits and tokens come from cache.
// KTOPS_ISA chooses the instruction set.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <vector>

#include "../src/pool.h"
#include "bench_common.h"
#ifdef KTOPS_HAVE_AMX
#include "../src/isa/tiles_amx.h"
#endif

namespace {

constexpr size_t kHidden = 7168, kInner = 2048;
constexpr uint32_t kTopK = 8;
constexpr double kSecondsPerFigure = 2;

struct Layer {
  Projection gate, up, down;

  Layer(ktops_pool* pool, uint32_t num_experts)
      : gate(pool, KTOPS_TYPE_Q4_K, kInner, kHidden, num_experts, KTOPS_LAYOUT_PANEL16),
        up(pool, KTOPS_TYPE_Q4_K, kInner, kHidden, num_experts, KTOPS_LAYOUT_PANEL16),
        down(pool, KTOPS_TYPE_Q6_K, kHidden, kInner, num_experts, KTOPS_LAYOUT_PANEL16) {}
};

// TFLOP/s of the matrix units with operands that stay in registers; 0 where there are none.
double peak(ktops_pool* pool) {
#ifdef KTOPS_HAVE_AMX
  constexpr size_t kRounds = 500'000;
  if (pool->kernels().gemm != nullptr && strcmp(pool->kernels().name, "amx") == 0) {
    const double start = now();
    pool->run(pool->num_threads(), [](size_t) {
      alignas(64) static const uint8_t zeros[1024] = {};
      Tiles::configure();
      Tiles::load<6>(zeros);
      Tiles::load<7>(zeros);
      for (size_t i = 0; i < kRounds; ++i) {
        Tiles::dot<0, 6, 7>();
        Tiles::dot<1, 6, 7>();
        Tiles::dot<2, 6, 7>();
        Tiles::dot<3, 6, 7>();
      }
      Tiles::release();
    });
    return 2e-12 * 4 * kRounds * 16 * 16 * 32 * pool->num_threads() / (now() - start);
  }
#endif
  return 0;
}

// Every thread multiplies 128 rows of its own with its own tokens, over and over.
void bench_kernel(ktops_pool* pool, const Projection& projection, size_t num_units) {
  const ktops_matrix& matrix = projection.matrix;
  const ktops::GemmKernels& gemm = *pool->kernels().gemm;
  const size_t panel_bytes = ktops::bytes_of_row(matrix) * ktops::kPanelRows;
  constexpr size_t kRounds = 12;
  printf("kernel alone, %s, %zu units:", testing::type_name(matrix.type), num_units);
  for (const uint32_t blocks : {1, 2, 4, 8, 16}) {
    std::vector<std::vector<uint8_t>> memory(pool->num_threads());
    const size_t token_bytes = ktops::group_bytes(matrix.cols, blocks);
    const size_t sum_bytes = num_units * blocks * 2 * ktops::kTileSums * sizeof(float);
    double start = 0;
    for (int pass = 0; pass < 2; ++pass) { // the first touches the memory
      start = now();
      pool->run(pool->num_threads(), [&](size_t slot) {
        std::vector<uint8_t>& own = memory[slot];
        own.resize(token_bytes + sum_bytes + ktops::kUnpackedBytes + 64);
        auto* at = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(own.data()) + 63) &
                                              ~uintptr_t{63});
        gemm.begin();
        for (size_t i = 0; i < kRounds; ++i) {
          ktops::WeightUnit units[ktops::kMaxUnits];
          for (size_t u = 0; u < num_units; ++u) {
            const size_t panel = (2 * (u + num_units * (slot + i))) %
                                 (matrix.num_experts * matrix.rows / ktops::kPanelRows - 2);
            const auto* data = static_cast<const uint8_t*>(matrix.data) + panel * panel_bytes;
            units[u] = {{data, data + panel_bytes}, matrix.type};
          }
          gemm.multiply({units, static_cast<uint32_t>(num_units), blocks, matrix.cols,
                         at + sum_bytes + ktops::kUnpackedBytes, at + sum_bytes,
                         reinterpret_cast<float*>(at)});
        }
        gemm.end();
      });
    }
    const double seconds = now() - start;
    const double weights =
        static_cast<double>(kRounds * num_units * 32 * matrix.cols) * pool->num_threads();
    printf("  %u tokens %.2f TFLOP/s %.0f Gw/s", 16 * blocks,
           2e-12 * weights * 16 * blocks / seconds, weights / 1e9 / seconds);
  }
  printf("\n");
}

struct Call {
  std::vector<float> x, weights, y;
  std::vector<int32_t> ids;

  Call(uint32_t num_experts, size_t num_tokens) {
    std::mt19937 random(static_cast<uint32_t>(num_tokens));
    x = testing::random_floats(random, num_tokens * kHidden);
    weights.assign(num_tokens * kTopK, 1.0f / kTopK);
    y.resize(num_tokens * kHidden);
    for (size_t t = 0; t < num_tokens; ++t) {
      std::set<int32_t> own;
      while (own.size() < kTopK)
        own.insert(static_cast<int32_t>(random() % num_experts));
      ids.insert(ids.end(), own.begin(), own.end());
    }
  }
};

// y += weight * matrix · x in float64.
void add_product(ktops_pool* pool, const ktops_matrix& matrix, uint64_t expert,
                 const std::vector<double>& x, double weight, std::vector<double>& y) {
  pool->run(matrix.rows, [&](size_t r) {
    std::vector<float> row(matrix.cols);
    ktops_dequantize_rows(&matrix, expert * matrix.rows + r, 1, row.data());
    double sum = 0;
    for (size_t c = 0; c < row.size(); ++c)
      sum += static_cast<double>(row[c]) * x[c];
    y[r] += weight * sum;
  });
}

// Relative L2 of a few tokens' results against float64 on the dequantised weights.
double error_of(ktops_pool* pool, const Layer& layer, const Call& call) {
  const size_t num_tokens = call.x.size() / kHidden;
  double difference = 0, norm = 0;
  for (const size_t t : {size_t{0}, num_tokens / 2, num_tokens - 1}) {
    const auto first = call.x.begin() + static_cast<long>(t * kHidden);
    const std::vector<double> x(first, first + kHidden);
    std::vector<double> y(kHidden);
    for (uint32_t k = 0; k < kTopK; ++k) {
      const auto expert = static_cast<uint64_t>(call.ids[t * kTopK + k]);
      std::vector<double> gate(kInner), up(kInner);
      add_product(pool, layer.gate.matrix, expert, x, 1, gate);
      add_product(pool, layer.up.matrix, expert, x, 1, up);
      for (size_t i = 0; i < kInner; ++i)
        gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      add_product(pool, layer.down.matrix, expert, gate,
                  static_cast<double>(call.weights[t * kTopK + k]), y);
    }
    for (size_t i = 0; i < kHidden; ++i) {
      const double found = static_cast<double>(call.y[t * kHidden + i]);
      difference += (y[i] - found) * (y[i] - found);
      norm += y[i] * y[i];
    }
  }
  return std::sqrt(difference / norm);
}

void bench_tokens(ktops_pool* pool, const Layer& layer, size_t num_tokens) {
  Call call(layer.gate.matrix.num_experts, num_tokens);
  const ktops_moe_args args{
      layer.gate.matrix,   layer.up.matrix, layer.down.matrix, call.x.data(), call.ids.data(),
      call.weights.data(), call.y.data(),   num_tokens,        kTopK,         0};
  std::vector<double> seconds, peaks;
  const double end = now() + kSecondsPerFigure;
  ktops_moe_forward(pool, &args); // grows the working memory
  while (seconds.size() < 3 || now() < end) {
    peaks.push_back(peak(pool));
    const double start = now();
    if (ktops_moe_forward(pool, &args) != KTOPS_OK)
      exit(1);
    seconds.push_back(now() - start);
  }
  const double tflops =
      2e-12 * 3 * kHidden * kInner * static_cast<double>(num_tokens * kTopK) / median(seconds);
  printf("%6zu %9.2f %8.3f", num_tokens, 1e3 * median(seconds), tflops);
  if (median(peaks) > 0)
    printf(" %8.2f %7.2f", median(peaks), tflops / median(peaks));
  else
    printf(" %8s %7s", "-", "-");
  printf("   %.1e\n", error_of(pool, layer, call));
  fflush(stdout);
}

} // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  const auto num_experts = static_cast<uint32_t>(argc > 2 ? atoi(argv[2]) : 16);
  std::vector<size_t> token_counts;
  for (int i = 3; i < argc; ++i)
    token_counts.push_back(static_cast<size_t>(atoi(argv[i])));
  if (token_counts.empty())
    token_counts = {64, 256, 512, 1024, 2048, 4096, 8192};

  if (num_experts < kTopK) {
    fprintf(stderr, "a token has %u experts, more than %u\n", kTopK, num_experts);
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
    const Layer layer(pool, num_experts);
    printf("%u experts [%zu, %zu] of Q4_K, Q4_K, Q6_K, top %u, %d threads, %s\n", num_experts,
           kInner, kHidden, kTopK, threads, pool->kernels().name);
    if (pool->kernels().gemm != nullptr) {
      bench_kernel(pool, layer.gate, 4);
      bench_kernel(pool, layer.down, 4);
    }
    printf("tokens        ms  TFLOP/s     peak   share   rel. L2\n");
    for (const size_t count : token_counts)
      bench_tokens(pool, layer, count);
  }
  ktops_pool_destroy(pool);
}
