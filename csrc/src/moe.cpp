// A mixture of experts in three parallel steps: activations to records; a first pass of gate and up
// with SiLU between; a second of down.
//
// The (token, expert) pairs are sorted by expert, so that tokens which share an expert share the
// read of its weights. A job is some rows of one expert for all its tokens, so that neighbouring
// jobs read on where the one before ended. The last of the experts that is done with some rows of
// the second pass adds up the products of all of them: each output value in the order of the
// experts, the same way every time. Where there are too many products to keep, a job of the second
// pass is some rows of the output for all experts.
#include "moe.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "moe_plan.h"
#include "prefill.h"
#include "projection.h"

namespace ktops {
namespace {

constexpr uint32_t kGroupRows = kIntColumns; // rows of gate and up that make one activation group

struct Pass {
  const ktops_moe_args& args;
  const MoePlan& plan;
  const KernelTable& kernels;
};

// Rows [row, row + num_rows) of one projection for a tile of tokens into out: [num_tokens, 32].
void project_group(const WeightRows& weights, size_t row, uint32_t num_rows, const uint8_t* next,
                   const void* const* records, uint32_t num_tokens, float* out) {
  alignas(64) float panel[kMaxTileTokens * kPanelRows];
  for (uint32_t done = 0; done < num_rows; done += kPanelRows) {
    const uint32_t count = std::min(kPanelRows, num_rows - done);
    const bool is_last = done + count == num_rows;
    multiply_panel(weights, row + done, count, is_last ? next : weights.row(row + done + count),
                   records, num_tokens, panel);
    for (uint32_t t = 0; t < num_tokens; ++t)
      memcpy(out + t * kGroupRows + done, panel + t * kPanelRows, count * sizeof(float));
  }
}

// hidden = silu(gate · x) ∘ (up · x) in rows [first_row, last_row) for the tokens of one expert.
// `next` is what is read then.
void gate_and_up(const Pass& pass, const ActiveExpert& active, size_t first_row, size_t last_row,
                 const uint8_t* next) {
  alignas(64) float gate[kMaxTileTokens * kGroupRows], up[kMaxTileTokens * kGroupRows];
  const void *gate_records[kMaxTileTokens], *up_records[kMaxTileTokens];
  const MoePlan& plan = pass.plan;
  const WeightRows gate_rows = weight_rows(pass.args.gate, active.expert, pass.kernels);
  const WeightRows up_rows = weight_rows(pass.args.up, active.expert, pass.kernels);
  const size_t max_tokens = tile_tokens(plan.gate_input.record_bytes());
  for (size_t pair = active.first_pair; pair < active.last_pair; pair += max_tokens) {
    const auto num_tokens = static_cast<uint32_t>(std::min(max_tokens, active.last_pair - pair));
    for (uint32_t t = 0; t < num_tokens; ++t) {
      gate_records[t] = plan.gate_input.record(plan.pairs[pair + t].token);
      up_records[t] = plan.up_input.record(plan.pairs[pair + t].token);
    }
    for (size_t row = first_row; row < last_row; row += kGroupRows) {
      const auto num_rows = static_cast<uint32_t>(std::min<size_t>(kGroupRows, last_row - row));
      project_group(gate_rows, row, num_rows, up_rows.row(row), gate_records, num_tokens, gate);
      const bool is_last = row + num_rows == last_row && pair + num_tokens == active.last_pair;
      project_group(up_rows, row, num_rows, is_last ? next : gate_rows.row(row + num_rows),
                    up_records, num_tokens, up);
      for (uint32_t t = 0; t < num_tokens; ++t) {
        float* values = gate + t * kGroupRows;
        pass.kernels.swiglu(values, up + t * kGroupRows, values, num_rows);
        plan.hidden.store(pass.kernels, pair + t, row, values, num_rows);
      }
    }
  }
}

void add_weighted(const float* values, float weight, uint32_t count, float* y) {
  for (uint32_t i = 0; i < count; ++i)
    y[i] += weight * values[i];
}

// y += weight * (down · hidden) in rows [first_row, last_row) for the tokens of one expert. `next`
// is what is read then.
void add_down(const Pass& pass, const ActiveExpert& active, size_t first_row, size_t last_row,
              const uint8_t* next) {
  alignas(64) float out[kMaxTileTokens * kPanelRows];
  const void* records[kMaxTileTokens];
  const MoePlan& plan = pass.plan;
  const WeightRows weights = weight_rows(pass.args.down, active.expert, pass.kernels);
  const size_t max_tokens = tile_tokens(plan.hidden.record_bytes());
  for (size_t pair = active.first_pair; pair < active.last_pair; pair += max_tokens) {
    const auto num_tokens = static_cast<uint32_t>(std::min(max_tokens, active.last_pair - pair));
    for (uint32_t t = 0; t < num_tokens; ++t)
      records[t] = plan.hidden.record(pair + t);
    for (size_t row = first_row; row < last_row; row += kPanelRows) {
      const auto num_rows = static_cast<uint32_t>(std::min<size_t>(kPanelRows, last_row - row));
      const bool is_last = row + num_rows == last_row && pair + num_tokens == active.last_pair;
      multiply_panel(weights, row, num_rows, is_last ? next : weights.row(row + num_rows), records,
                     num_tokens, out);
      for (uint32_t t = 0; t < num_tokens; ++t)
        add_weighted(out + t * kPanelRows, plan.pairs[pair + t].weight, num_rows,
                     pass.args.y + plan.pairs[pair + t].token * weights.rows + row);
    }
  }
}

void clear_rows(const ktops_moe_args& args, size_t first_row, size_t last_row) {
  for (size_t t = 0; t < args.num_tokens; ++t)
    std::fill(args.y + t * args.down.rows + first_row, args.y + t * args.down.rows + last_row,
              0.0f);
}

// The three steps and how they are cut into indices.
class Steps {
 public:
  Steps(const Pass& pass, const ktops_pool& pool)
      : pass_(pass), num_experts_(std::max<size_t>(pass.plan.num_experts, 1)),
        gate_(weight_rows(pass.args.gate, 0, pass.kernels)),
        down_(weight_rows(pass.args.down, 0, pass.kernels)), up_rows_(rows_of_up_job(pool)),
        by_expert_(pass.plan.products != nullptr),
        down_rows_(rows_per_job(down_.rows, down_.row_bytes * (by_expert_ ? 1 : num_experts_),
                                tokens_each(), kPanelRows, pool.num_threads())),
        up_jobs_(gate_.rows, up_rows_, pass.plan.num_experts,
                 nodes_of_rows(gate_.rows, gate_.row_bytes, pool.num_nodes())),
        down_jobs_(down_.rows, down_rows_, by_expert_ ? pass.plan.num_experts : 1,
                   nodes_of_rows(down_.rows, down_.row_bytes, pool.num_nodes())) {
    const MoePlan& plan = pass.plan;
    num_gate_pieces_ = plan.gate_input.num_pieces(pass.args.num_tokens);
    num_up_pieces_ = plan.shared_input ? 0 : plan.up_input.num_pieces(pass.args.num_tokens);
    for (size_t part = 0; by_expert_ && part < down_jobs_.num_parts(); ++part)
      new (plan.experts_done + part) std::atomic<uint32_t>(0);
  }

  void run(ktops_pool& pool) const {
    const auto store = [this](size_t index) { store_input(index); };
    const auto first = [this](size_t index, size_t then) { first_pass(index, then); };
    const auto second = [this](size_t index, size_t then) {
      by_expert_ ? second_pass(index, then) : second_pass_by_rows(index, then);
    };
    const auto prepare_first = [this](size_t index, size_t n) { prepare_first_pass(index, n); };
    const auto prepare_second = [this](size_t index, size_t n) { prepare_second_pass(index, n); };
    ktops_pool::Step steps[] = {ktops_pool::step(num_gate_pieces_ + num_up_pieces_, store),
                                ktops_pool::step(up_jobs_.count(), first, prepare_first),
                                ktops_pool::step(down_jobs_.count(), second, prepare_second)};
    steps[1].node_ends = up_jobs_.node_ends();
    steps[2].node_ends = down_jobs_.node_ends();
    if (is_small())
      ktops_pool::run_alone(steps, 3);
    else
      pool.run_steps(steps, 3);
  }

 private:
  size_t num_pairs() const {
    const MoePlan& plan = pass_.plan;
    return plan.num_experts == 0 ? 0 : plan.experts[plan.num_experts - 1].last_pair;
  }
  size_t tokens_each() const { return num_pairs() / num_experts_; }
  // Jobs of the first pass take turns among the experts: fewer rows of each when there are many.
  size_t rows_of_up_job(const ktops_pool& pool) const {
    const size_t threads_per_expert = divide_up(pool.num_threads(), num_experts_);
    return rows_per_job(gate_.rows, 2 * gate_.row_bytes, tokens_each(), kGroupRows,
                        threads_per_expert);
  }

  bool is_small() const {
    const auto expert_bytes =
        static_cast<double>(2 * gate_.rows * gate_.row_bytes + down_.rows * down_.row_bytes);
    const auto expert_products = static_cast<double>(3 * gate_.rows * gate_.cols);
    return is_small_job(expert_bytes * static_cast<double>(pass_.plan.num_experts),
                        expert_products * static_cast<double>(num_pairs()));
  }

  void store_input(size_t index) const {
    if (index < num_gate_pieces_)
      pass_.plan.gate_input.store_piece(pass_.kernels, index, pass_.args.x);
    else
      pass_.plan.up_input.store_piece(pass_.kernels, index - num_gate_pieces_, pass_.args.x);
  }

  WeightRows gate_of(const RowJobs::Job& job) const {
    return weight_rows(pass_.args.gate, pass_.plan.experts[job.matrix].expert, pass_.kernels);
  }

  WeightRows down_of(const RowJobs::Job& job) const {
    return weight_rows(pass_.args.down, pass_.plan.experts[job.matrix].expert, pass_.kernels);
  }

  void first_pass(size_t index, size_t then) const {
    const RowJobs::Job job = up_jobs_.job(index);
    // None known: its own rows, so that nothing is read.
    const RowJobs::Job next = then < up_jobs_.count() ? up_jobs_.job(then) : job;
    gate_and_up(pass_, pass_.plan.experts[job.matrix], job.first_row, job.last_row,
                gate_of(next).row(next.first_row));
  }

  void second_pass(size_t index, size_t then) const {
    const MoePlan& plan = pass_.plan;
    const RowJobs::Job job = down_jobs_.job(index);
    const RowJobs::Job next = then < down_jobs_.count() ? down_jobs_.job(then) : job;
    const ActiveExpert& active = plan.experts[job.matrix];
    multiply_rows(down_of(job), plan.hidden,
                  {job.first_row, job.last_row, down_of(next).row(next.first_row),
                   active.first_pair, active.last_pair - active.first_pair,
                   plan.products + active.first_pair * down_.rows, down_.rows});
    std::atomic<uint32_t>& done = plan.experts_done[down_jobs_.part(index)];
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == plan.num_experts)
      add_products(job.first_row, job.last_row);
  }

  void add_products(size_t first_row, size_t last_row) const {
    const MoePlan& plan = pass_.plan;
    const auto count = static_cast<uint32_t>(last_row - first_row);
    clear_rows(pass_.args, first_row, last_row);
    for (size_t pair = 0; pair < num_pairs(); ++pair)
      add_weighted(plan.products + pair * down_.rows + first_row, plan.pairs[pair].weight, count,
                   pass_.args.y + plan.pairs[pair].token * down_.rows + first_row);
  }

  void second_pass_by_rows(size_t index, size_t then) const {
    const MoePlan& plan = pass_.plan;
    const RowJobs::Job job = down_jobs_.job(index);
    const size_t row = job.first_row, last_row = job.last_row;
    const size_t next_row = then < down_jobs_.count() ? down_jobs_.job(then).first_row : row;
    clear_rows(pass_.args, row, last_row);
    for (size_t e = 0; e < plan.num_experts; ++e) {
      const bool is_last = e + 1 == plan.num_experts;
      const size_t expert = plan.experts[is_last ? 0 : e + 1].expert;
      const WeightRows next = weight_rows(pass_.args.down, expert, pass_.kernels);
      add_down(pass_, plan.experts[e], row, last_row, next.row(is_last ? next_row : row));
    }
  }

  void prepare_first_pass(size_t index, size_t n) const {
    const RowJobs::Job job = up_jobs_.job(index);
    prefetch_rows(gate_of(job), job.first_row, job.last_row, n);
  }

  // Whoever is first in the second pass takes many jobs, one behind the other; by rows, a job reads
  // some rows of each expert.
  void prepare_second_pass(size_t index, size_t n) const {
    if (by_expert_) {
      const RowJobs::Job job = down_jobs_.job(index);
      return prefetch_rows(down_of(job), job.first_row, down_.rows, n);
    }
    const size_t pieces = divide_up(down_rows_ * down_.row_bytes, kPreparedBytes);
    const size_t e = n / pieces;
    if (e >= pass_.plan.num_experts || n >= kMostPrepared)
      return;
    const WeightRows rows =
        weight_rows(pass_.args.down, pass_.plan.experts[e].expert, pass_.kernels);
    const RowJobs::Job job = down_jobs_.job(index);
    prefetch_rows(rows, job.first_row, job.last_row, n % pieces);
  }

  const Pass pass_;
  const size_t num_experts_; // or 1
  const WeightRows gate_, down_;
  const size_t up_rows_;
  const bool by_expert_; // the jobs of the second pass; else they are of all experts at once
  const size_t down_rows_;
  const RowJobs up_jobs_, down_jobs_;
  size_t num_gate_pieces_, num_up_pieces_;
};

} // namespace

int32_t moe_forward(ktops_pool& pool, const ktops_moe_args& args) {
  if (prefill_serves(pool, args))
    return prefill_moe(pool, args);
  const size_t num_pairs = args.num_tokens * args.top_k;
  Carver measure(nullptr);
  MoePlan(measure, args, num_pairs);
  std::byte* base = pool.scratch().reserve(measure.used());
  if (base == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  Carver carver(base);
  MoePlan plan(carver, args, num_pairs);
  sort_pairs(args, num_pairs, plan);
  if (plan.num_experts == 0) {
    clear_rows(args, 0, args.down.rows);
    return KTOPS_OK;
  }
  Steps({args, plan, pool.kernels()}, pool).run(pool);
  return KTOPS_OK;
}

} // namespace ktops
