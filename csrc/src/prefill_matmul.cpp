#include <algorithm>
#include <new>

#include "prefill.h"
#include "prefill_jobs.h"

namespace ktops {
namespace {

struct Plan {
  TokenGroup* groups;
  uint8_t* tokens;
  ThreadSpace* spaces;

  Plan(Carver& carver, const ktops_matmul_args& args, size_t num_threads) {
    const size_t num_matrices = args.weight.num_experts, num_tokens = args.num_tokens;
    const size_t num_groups = max_groups(num_tokens, 1) * num_matrices;
    const size_t num_blocks = num_matrices * divide_up(num_tokens, kBlockTokens);
    groups = carver.take<TokenGroup>(num_groups);
    tokens = carver.take<uint8_t>(group_bytes(args.weight.cols, num_blocks));
    spaces = carver.take<ThreadSpace>(num_threads);
    for (size_t i = 0; i < num_threads; ++i) {
      const ThreadSpace space(carver, {&args.weight});
      if (spaces != nullptr)
        new (spaces + i) ThreadSpace(space);
    }
  }
  uint8_t* group_tokens(const ktops_matmul_args& args, const TokenGroup& group) const {
    return tokens + group_bytes(args.weight.cols, group.first_block);
  }
};

void store_tokens(ktops_pool& pool, const ktops_matmul_args& args, const Plan& plan,
                  size_t num_groups) {
  const size_t cols = args.weight.cols;
  pool.run(num_groups * kMaxGroupTokens, [&](size_t index) {
    const TokenGroup& group = plan.groups[index / kMaxGroupTokens];
    const auto token = static_cast<uint32_t>(index % kMaxGroupTokens);
    if (token >= group.num_tokens)
      return;
    const TokenPlace place{plan.group_tokens(args, group), group.num_blocks(), token};
    pool.kernels().gemm->store_token(args.x + (group.first + token) * cols, cols, &place, 1);
  });
}

// Rows [row, row + num_rows) for a group of tokens.
void multiply_rows(const KernelTable& kernels, const ktops_matmul_args& args, const Plan& plan,
                   const ThreadSpace& space, const TokenGroup& group, size_t row, size_t num_rows) {
  WeightUnit units[kMaxUnits];
  const uint32_t num_units =
      space.make_units(kernels, args.weight, group.matrix, row, num_rows, units, 0);
  const uint32_t num_blocks = group.num_blocks();
  kernels.gemm->multiply({units, num_units, group.num_tokens, args.weight.cols,
                          plan.group_tokens(args, group), space.unpacked(), space.sums()});
  for (uint32_t unit = 0; unit < num_units; ++unit) {
    const size_t first_row = unit * kUnitRows;
    for (uint32_t block = 0; block < num_blocks; ++block) {
      const uint32_t first = block * kBlockTokens;
      const uint32_t count = std::min(kBlockTokens, group.num_tokens - first);
      float* y[kBlockTokens];
      for (uint32_t t = 0; t < count; ++t)
        y[t] = args.y + (group.first + first + t) * args.weight.rows + row + first_row;
      kernels.gemm->add_rows(
          space.sums() + (unit * num_blocks + block) * 2 * kTileSums, nullptr, count,
          static_cast<uint32_t>(std::min<size_t>(kUnitRows, num_rows - first_row)), y);
    }
  }
}

} // namespace

bool prefill_serves(const ktops_pool& pool, const ktops_matmul_args& args) {
  const GemmKernels* gemm = pool.kernels().gemm;
  return gemm != nullptr && type_info(args.weight.type).block_size > 1 && args.weight.rows != 0 &&
         args.num_tokens >= gemm->min_tokens;
}

int32_t prefill_matmul(ktops_pool& pool, const ktops_matmul_args& args) {
  Carver measure(nullptr);
  Plan(measure, args, pool.num_threads());
  std::byte* base = pool.scratch().reserve(measure.used());
  if (base == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  Carver carver(base);
  const Plan plan(carver, args, pool.num_threads());
  TokenGroup* end = plan.groups;
  const size_t matrix_blocks = divide_up(args.num_tokens, kBlockTokens);
  for (size_t matrix = 0; matrix < args.weight.num_experts; ++matrix)
    end =
        cut_groups(matrix, matrix * args.num_tokens, args.num_tokens, matrix * matrix_blocks, end);
  const auto num_groups = static_cast<size_t>(end - plan.groups);
  store_tokens(pool, args, plan, num_groups);

  const size_t rows = args.weight.rows;
  const size_t job_rows = kUnitRows * units_per_job(divide_up(rows, kUnitRows), num_groups,
                                                    kMaxUnits, pool.num_threads());
  const size_t row_bytes = weight_rows(args.weight, 0, pool.kernels()).row_bytes;
  const RowJobs jobs(rows, job_rows, num_groups, nodes_of_rows(rows, row_bytes, pool.num_nodes()));
  run_products(pool, plan.spaces, jobs, [&](const ThreadSpace& space, size_t index) {
    const RowJobs::Job job = jobs.job(index);
    multiply_rows(pool.kernels(), args, plan, space, plan.groups[job.matrix], job.first_row,
                  job.last_row - job.first_row);
  });
  return KTOPS_OK;
}

} // namespace ktops
