#include "matmul.h"

#include <algorithm>

#include "prefill.h"
#include "projection.h"

namespace ktops {

int32_t matmul(ktops_pool& pool, const ktops_matmul_args& args) {
  if (prefill_serves(pool, args))
    return prefill_matmul(pool, args);
  const size_t num_tokens = args.num_tokens, num_matrices = args.weight.num_experts;
  const WeightRows weights = weight_rows(args.weight, 0, pool.kernels());
  if (num_tokens == 0 || weights.rows == 0)
    return KTOPS_OK;

  Carver measure(nullptr);
  Activations(measure, args.weight.type, weights.cols, num_matrices * num_tokens);
  std::byte* base = pool.scratch().reserve(measure.used());
  if (base == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  Carver carver(base);
  const Activations activations(carver, args.weight.type, weights.cols, num_matrices * num_tokens);
  const auto store = [&](size_t index) { activations.store_piece(pool.kernels(), index, args.x); };

  const size_t job_rows =
      rows_per_job(weights.rows, weights.row_bytes, num_tokens, kPanelRows, pool.num_threads());
  const uint32_t num_nodes = nodes_of_rows(weights.rows, weights.row_bytes, pool.num_nodes());
  const size_t num_row_jobs = RowJobs(weights.rows, job_rows, 1, num_nodes).count();
  // With too few rows to keep the threads busy the tokens are shared out too, a tile at a time.
  const size_t tile = tile_tokens(activations.record_bytes());
  const size_t job_tokens = num_row_jobs >= 4 * pool.num_threads() ? num_tokens : tile;
  const size_t num_token_jobs = divide_up(num_tokens, job_tokens);
  const RowJobs jobs(weights.rows, job_rows, num_matrices * num_token_jobs, num_nodes);
  const auto multiply = [&](size_t index) {
    const RowJobs::Job job = jobs.job(index);
    const size_t token = job.matrix % num_token_jobs * job_tokens;
    const size_t matrix = job.matrix / num_token_jobs, first_record = matrix * num_tokens + token;
    const WeightRows own = weight_rows(args.weight, matrix, pool.kernels());
    multiply_rows(own, activations,
                  {job.first_row, job.last_row, own.row(job.last_row), first_record,
                   std::min(job_tokens, num_tokens - token), args.y + first_record * weights.rows,
                   weights.rows});
  };
  const double weight_bytes = static_cast<double>(num_matrices * weights.rows * weights.row_bytes);
  const double products = static_cast<double>(num_matrices * weights.rows * weights.cols) *
                          static_cast<double>(num_tokens);
  ktops_pool::Step steps[] = {
      ktops_pool::step(activations.num_pieces(num_matrices * num_tokens), store),
      ktops_pool::step(jobs.count(), multiply)};
  steps[1].node_ends = jobs.node_ends();
  if (is_small_job(weight_bytes, products))
    ktops_pool::run_alone(steps, 2);
  else
    pool.run_steps(steps, 2);
  return KTOPS_OK;
}

} // namespace ktops
