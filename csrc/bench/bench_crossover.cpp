// From how many tokens an expert on tiles (AMX, AVX-512 BF16) are faster than panels.
//
//   ktops_bench_crossover [threads] [experts] [tokens an expert...]
//
// R1's shape; every token goes to all experts, so each has the same number. The two ways take turns
// on the same weights, each with a pool of its own; medians are printed, and what the number built
// in, GemmKernels::min_tokens, loses by choosing the slower one.
#include <cstdio>
#include <cstdlib>

#include "../src/pool.h"
#include "../src/prefill.h"
#include "bench_common.h"

namespace {

constexpr size_t kHidden = 7168, kInner = 2048;
constexpr double kSecondsPerFigure = 1.5;

ktops_pool* new_pool(const char* isa, uint32_t num_threads) {
  std::vector<int32_t> cpus;
  for (uint32_t i = 0; i < num_threads; ++i)
    cpus.push_back(static_cast<int32_t>(i));
  setenv("KTOPS_ISA", isa, 1);
  ktops_pool* pool = nullptr;
  if (ktops_pool_create(cpus.data(), num_threads, &pool) != KTOPS_OK)
    exit(1);
  return pool;
}

struct Bench {
  ktops_pool *tiles, *panels;
  Projection gate, up, down;
  std::vector<float> x, weights, y;
  std::vector<int32_t> ids;

  Bench(uint32_t num_threads, uint32_t num_experts)
      : tiles(new_pool("amx", num_threads)), panels(new_pool("avx512vnni", num_threads)),
        gate(panels, KTOPS_TYPE_Q4_K, kInner, kHidden, num_experts, KTOPS_LAYOUT_PANEL16),
        up(panels, KTOPS_TYPE_Q4_K, kInner, kHidden, num_experts, KTOPS_LAYOUT_PANEL16),
        down(panels, KTOPS_TYPE_Q6_K, kHidden, kInner, num_experts, KTOPS_LAYOUT_PANEL16) {}

  uint32_t num_experts() const { return gate.matrix.num_experts; }

  void draw(size_t num_tokens) {
    std::mt19937 random(1);
    x = testing::random_floats(random, num_tokens * kHidden);
    y.assign(x.size(), 0);
    weights.assign(num_tokens * num_experts(), 1.0f / static_cast<float>(num_experts()));
    ids.clear();
    for (size_t i = 0; i < weights.size(); ++i)
      ids.push_back(static_cast<int32_t>(i % num_experts()));
  }

  double seconds(ktops_pool* pool) {
    const ktops_moe_args args{
        gate.matrix,    up.matrix, down.matrix,        x.data(),      ids.data(),
        weights.data(), y.data(),  x.size() / kHidden, num_experts(), 0};
    const double start = now();
    if (pool == tiles) {
      pool->lock();
      ktops::prefill_moe(*pool, args);
      pool->unlock();
    } else {
      ktops_moe_forward(pool, &args);
    }
    return now() - start;
  }

  // Returns the share of time that the number built in loses.
  double compare(size_t num_tokens) {
    draw(num_tokens);
    seconds(tiles); // scratch memory
    std::vector<double> by_tiles, by_panels;
    for (const double end = now() + kSecondsPerFigure; now() < end || by_tiles.size() < 3;) {
      by_tiles.push_back(seconds(tiles));
      by_panels.push_back(seconds(panels));
    }
    const double tile = median(by_tiles), panel = median(by_panels);
    const bool takes_tiles = num_tokens >= tiles->kernels().gemm->min_tokens;
    const double loss = (takes_tiles ? tile : panel) / std::min(tile, panel) - 1;
    printf("%6zu  %9.3f  %9.3f  %9.2f  %s  %4.1f %%\n", num_tokens, 1e3 * panel, 1e3 * tile,
           panel / tile, takes_tiles ? "tiles " : "panels", 100 * loss);
    return loss;
  }
};

} // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, const char* otherwise) {
    return strtoul(argc > i ? argv[i] : otherwise, nullptr, 10);
  };
  const auto num_threads = static_cast<uint32_t>(argument(1, "2"));
  Bench bench(num_threads, static_cast<uint32_t>(argument(2, "16")));
  if (bench.tiles->kernels().gemm == nullptr) {
    printf("%s: no tiles here\n", bench.tiles->kernels().name);
    return 77;
  }
  std::vector<size_t> counts{2, 4, 6, 7, 8, 9, 10, 12, 16, 24, 32, 48, 64};
  if (argc > 3)
    counts.clear();
  for (int i = 3; i < argc; ++i)
    counts.push_back(argument(i, ""));
  printf("%u threads, %u experts, min_tokens %u\ntokens  panels ms   tiles ms  tiles' gain  taken"
         "  lost\n",
         num_threads, bench.num_experts(), bench.tiles->kernels().gemm->min_tokens);
  double most = 0;
  for (const size_t count : counts)
    most = std::max(most, bench.compare(count));
  printf("the number built in loses at most %.1f %%\n", 100 * most);
  return 0;
}
