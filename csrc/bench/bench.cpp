// What the kernels make of this machine: bytes of weights per second for one token beside what the
// memory gives to the same threads, and products per second for many.
//
//   ktops_bench [threads] [MiB of weights] [type]        KTOPS_ISA chooses the instruction set
//
// One thread is timed by its own CPU time, so that a busy machine does not matter much; several by
// the clock on the wall.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "../tests/random_blocks.h"

namespace {

constexpr size_t kCols = 7168;
constexpr double kSecondsPerFigure = 0.15;

struct Setup {
  ktops_pool* pool;
  clockid_t clock;
  uint8_t* weights;
  size_t weight_bytes;
};

double seconds_of(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <class Body> double best_seconds(const Setup& setup, const Body& body) {
  double best = 1e9;
  const double end = seconds_of(setup.clock) + kSecondsPerFigure;
  for (int i = 0; i < 5 || seconds_of(setup.clock) < end; ++i) {
    const double start = seconds_of(setup.clock);
    body();
    best = std::min(best, seconds_of(setup.clock) - start);
  }
  return best;
}

// Reading with as many threads as the pool has: summing floats as one matrix row is a plain read.
double read_gigabytes(const Setup& setup) {
  const size_t cols = 4096, rows = setup.weight_bytes / sizeof(float) / cols;
  const std::vector<float> x(cols, 1.0f);
  std::vector<float> y(rows);
  const ktops_matmul_args args{
      {setup.weights, rows, cols, KTOPS_TYPE_F32, KTOPS_LAYOUT_GGUF, 1, 0}, x.data(), y.data(), 1};
  const double seconds = best_seconds(setup, [&] { ktops_matmul(setup.pool, &args); });
  return static_cast<double>(setup.weight_bytes) / 1e9 / seconds;
}

void bench_type(const Setup& setup, uint32_t type, uint32_t layout) {
  std::mt19937 random(1);
  const testing::Block block = testing::block_of(type);
  const size_t row_bytes = kCols / block.size * block.bytes;
  const size_t rows = setup.weight_bytes / row_bytes;
  // Random rows, repeated: their values do not matter for the time.
  const std::vector<uint8_t> some = testing::random_weights(random, type, 64 * kCols);
  for (size_t at = 0; at < setup.weight_bytes; at += some.size())
    memcpy(setup.weights + at, some.data(), std::min(some.size(), setup.weight_bytes - at));
  printf("%5s%s", testing::type_name(type), layout == KTOPS_LAYOUT_GGUF ? " " : "*");
  for (const size_t tokens : {1, 2, 4, 8, 16, 64}) {
    const size_t used_rows = tokens < 8 ? rows : std::min<size_t>(rows, 512);
    const std::vector<float> x = testing::random_floats(random, tokens * kCols);
    std::vector<float> y(tokens * used_rows);
    const ktops_matmul_args args{
        {setup.weights, used_rows, kCols, type, layout, 1, 0}, x.data(), y.data(), tokens};
    const double seconds = best_seconds(setup, [&] { ktops_matmul(setup.pool, &args); });
    if (tokens < 8)
      printf(" %9.1f", static_cast<double>(used_rows * row_bytes) / 1e9 / seconds);
    else
      printf(" %9.1f", 2e-9 * static_cast<double>(used_rows * kCols * tokens) / seconds);
  }
  const std::vector<float> x = testing::random_floats(random, 256);
  std::vector<float> y(256);
  const ktops_matmul_args args{
      {setup.weights, 256, 256, type, layout, 1, 0}, x.data(), y.data(), 1};
  printf(" %9.2f\n", 1e6 * best_seconds(setup, [&] { ktops_matmul(setup.pool, &args); }));
}

} // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  std::vector<int32_t> cpus;
  for (int i = 0; i < threads; ++i)
    cpus.push_back(i);
  ktops_pool* pool = nullptr;
  const int32_t status = ktops_pool_create(cpus.data(), static_cast<uint32_t>(cpus.size()), &pool);
  const char* isa = "";
  if (status != KTOPS_OK || ktops_isa(&isa) != KTOPS_OK) {
    fprintf(stderr, "%s\n", ktops_status_string(status));
    return 1;
  }
  const double mib = argc > 2 ? atof(argv[2]) : 128;
  ktops_buffer weights;
  if (ktops_alloc(static_cast<uint64_t>(mib * (1 << 20)), &weights) != KTOPS_OK)
    return 1;
  memset(weights.address, 1, weights.num_bytes); // untouched pages would all be one zero page
  const Setup setup{pool, threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC,
                    static_cast<uint8_t*>(weights.address), weights.num_bytes};
  printf("%d threads, %s, float32 read %.1f GB/s\n", threads, isa, read_gigabytes(setup));
  printf("           GB/s of weights, tokens    GFLOP/s, tokens                  us\n");
  printf(
      " type          1         2         4         8        16        64   256x256    * packed\n");
  for (const uint32_t type : testing::kAllTypes)
    if (argc < 4 || strcmp(argv[3], testing::type_name(type)) == 0)
      for (const uint32_t layout : {KTOPS_LAYOUT_GGUF, KTOPS_LAYOUT_PANEL16})
        if (layout == KTOPS_LAYOUT_GGUF || testing::block_of(type).size > 1)
          bench_type(setup, type, layout);
  ktops_free(&weights);
  ktops_pool_destroy(pool);
}
