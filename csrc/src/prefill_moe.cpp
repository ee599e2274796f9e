// A mixture of experts for many tokens.
//
// The (token, expert) pairs are sorted by expert, those with most tokens first, and cut into
// groups. Waves of groups, as many as fit in the memory set aside, pass through three steps: the
// tokens are copied to their groups; gate and up with SiLU between; down, added to the output. A
// job of the last two steps is some rows of one expert for one group, so that the threads are busy
// with the same few groups at a time and share their tokens in cache. Jobs that add to the same
// output rows take turns in the order of the groups: every run adds in the same order.
#include <algorithm>
#include <cstring>
#include <immintrin.h>
#include <new>
#include <sched.h>

#include "prefill.h"
#include "prefill_plan.h"

namespace ktops {
namespace {

constexpr uint32_t kMaxUpUnits = kMaxUnits / 2; // gate and up each

// Groups [first, last) of a plan.
struct Wave {
  const ktops_moe_args& args;
  const PrefillPlan& plan;
  const KernelTable& kernels;
  size_t first, last;

  size_t num_groups() const { return last - first; }
  uint32_t num_nodes(const ktops_pool& pool, const ktops_matrix& matrix) const {
    return nodes_of_rows(matrix.rows, weight_rows(matrix, 0, kernels).row_bytes, pool.num_nodes());
  }
  const TokenGroup& group(size_t index) const { return plan.groups[first + index]; }
  size_t first_block(const TokenGroup& g) const {
    return g.first_block - plan.groups[first].first_block;
  }
  uint8_t* input(const TokenGroup& g) const {
    return plan.input + group_bytes(args.gate.cols, first_block(g));
  }
  uint8_t* hidden(const TokenGroup& g) const {
    return plan.hidden + group_bytes(args.down.cols, first_block(g));
  }
};

// One token to its places in the wave's groups.
void copy_token(const Wave& wave, size_t token) {
  const ktops_moe_args& args = wave.args;
  constexpr size_t kMostPlaces = 16;
  TokenPlace places[kMostPlaces];
  const float* x = args.x + token * args.gate.cols;
  size_t num_places = 0;
  for (size_t k = 0; k < args.top_k; ++k) {
    const PairPlace& place = wave.plan.places[token * args.top_k + k];
    if (place.group < wave.first || place.group >= wave.last) // kSkipped is beyond all
      continue;
    const TokenGroup& group = wave.plan.groups[place.group];
    places[num_places++] = {wave.input(group), group.num_blocks(), place.index};
    if (num_places == kMostPlaces) {
      wave.kernels.gemm->store_token(x, args.gate.cols, places, num_places);
      num_places = 0;
    }
  }
  if (num_places != 0)
    wave.kernels.gemm->store_token(x, args.gate.cols, places, num_places);
}

// hidden = silu(gate · x) ∘ (up · x) in rows [row, row + num_rows) for a group of tokens.
void gate_and_up(const Wave& wave, const ThreadSpace& space, const TokenGroup& group, size_t row,
                 size_t num_rows) {
  const ktops_moe_args& args = wave.args;
  WeightUnit units[kMaxUnits];
  const uint32_t half =
      space.make_units(wave.kernels, args.gate, group.matrix, row, num_rows, units, 0);
  space.make_units(wave.kernels, args.up, group.matrix, row, num_rows, units, half);
  const uint32_t num_blocks = group.num_blocks();
  wave.kernels.gemm->multiply({units, 2 * half, group.num_tokens, args.gate.cols, wave.input(group),
                               space.unpacked(), space.sums()});
  for (uint32_t unit = 0; unit < half; ++unit)
    for (uint32_t block = 0; block < num_blocks; ++block) {
      const float* gate = space.sums() + (unit * num_blocks + block) * 2 * kTileSums;
      const float* up = gate + half * num_blocks * 2 * kTileSums;
      const size_t offset =
          tile_offset(args.down.cols, num_blocks, block, row / kTileColumns + unit);
      wave.kernels.gemm->store_gated(gate, up, wave.hidden(group) + offset);
    }
}

// Waits until it is `turn`'s; the one before has been at work since before this job was taken.
void await_turn(const std::atomic<uint32_t>& turns, uint32_t turn) {
  for (uint32_t spins = 0; turns.load(std::memory_order_acquire) != turn; ++spins) {
    if (spins % 1024 == 1023)
      sched_yield();
    else
      _mm_pause();
  }
}

// y += weight * (down · hidden) in rows [row, row + num_rows) for a group of tokens.
void add_down(const Wave& wave, const ThreadSpace& space, const TokenGroup& group, size_t row,
              size_t num_rows, std::atomic<uint32_t>& turns, uint32_t turn) {
  const ktops_moe_args& args = wave.args;
  WeightUnit units[kMaxUnits];
  const uint32_t num_units =
      space.make_units(wave.kernels, args.down, group.matrix, row, num_rows, units, 0);
  const uint32_t num_blocks = group.num_blocks();
  wave.kernels.gemm->multiply({units, num_units, group.num_tokens, args.down.cols,
                               wave.hidden(group), space.unpacked(), space.sums()});
  await_turn(turns, turn);
  for (uint32_t unit = 0; unit < num_units; ++unit)
    for (uint32_t block = 0; block < num_blocks; ++block) {
      const uint32_t first = block * kBlockTokens;
      const uint32_t count = std::min(kBlockTokens, group.num_tokens - first);
      const size_t pair = group.first + first;
      float* y[kBlockTokens];
      for (uint32_t t = 0; t < count; ++t)
        y[t] = args.y + wave.plan.tokens[pair + t] * args.down.rows + row + unit * kUnitRows;
      wave.kernels.gemm->add_rows(space.sums() + (unit * num_blocks + block) * 2 * kTileSums,
                                  wave.plan.weights + pair, count, kUnitRows, y);
    }
  turns.store(turn + 1, std::memory_order_release);
}

void run_wave(ktops_pool& pool, const Wave& wave) {
  const ktops_moe_args& args = wave.args;
  const PrefillPlan& plan = wave.plan;
  pool.run(args.num_tokens, [&](size_t token) {
    if (wave.first == 0)
      std::fill_n(args.y + token * args.down.rows, args.down.rows, 0.0f);
    copy_token(wave, token);
  });

  const size_t inner = args.gate.rows, outer = args.down.rows;
  const size_t num_threads = pool.num_threads();
  const size_t up_rows =
      kUnitRows * units_per_job(inner / kUnitRows, wave.num_groups(), kMaxUpUnits, num_threads);
  const RowJobs up_jobs(inner, up_rows, wave.num_groups(), wave.num_nodes(pool, args.gate));
  run_products(pool, plan.spaces, up_jobs, [&](const ThreadSpace& space, size_t index) {
    const RowJobs::Job job = up_jobs.job(index);
    gate_and_up(wave, space, wave.group(job.matrix), job.first_row, job.last_row - job.first_row);
  });

  const size_t down_rows =
      kUnitRows * units_per_job(outer / kUnitRows, wave.num_groups(), kMaxUnits, num_threads);
  const RowJobs down_jobs(outer, down_rows, wave.num_groups(), wave.num_nodes(pool, args.down));
  for (size_t i = 0; i < down_jobs.num_parts(); ++i)
    new (plan.turns + i) std::atomic<uint32_t>(0);
  run_products(pool, plan.spaces, down_jobs, [&](const ThreadSpace& space, size_t index) {
    const RowJobs::Job job = down_jobs.job(index);
    add_down(wave, space, wave.group(job.matrix), job.first_row, job.last_row - job.first_row,
             plan.turns[down_jobs.part(index)], static_cast<uint32_t>(job.matrix));
  });
}

} // namespace

bool prefill_serves(const ktops_pool& pool, const ktops_moe_args& args) {
  const GemmKernels* gemm = pool.kernels().gemm;
  if (gemm == nullptr)
    return false;
  for (const ktops_matrix* matrix : {&args.gate, &args.up, &args.down})
    if (type_info(matrix->type).block_size == 1)
      return false;
  const size_t num_pairs = args.num_tokens * args.top_k;
  return num_pairs >= gemm->min_tokens && num_pairs < kSkipped &&
         num_pairs >= gemm->min_tokens * count_experts(args);
}

int32_t prefill_moe(ktops_pool& pool, const ktops_moe_args& args, size_t wave_bytes) {
  Carver measure(nullptr);
  PrefillPlan(measure, args, pool.num_threads(), wave_bytes);
  std::byte* base = pool.scratch().reserve(measure.used());
  if (base == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  Carver carver(base);
  PrefillPlan plan(carver, args, pool.num_threads(), wave_bytes);
  sort_pairs(args, plan);
  size_t first = 0;
  do {
    size_t last = first, end_block = 0;
    const size_t first_block = plan.num_groups == 0 ? 0 : plan.groups[first].first_block;
    for (; last < plan.num_groups; ++last) {
      end_block = plan.groups[last].first_block + plan.groups[last].num_blocks();
      if (end_block - first_block > plan.wave_blocks)
        break;
    }
    run_wave(pool, {args, plan, pool.kernels(), first, last});
    first = last;
  } while (first < plan.num_groups);
  return KTOPS_OK;
}

} // namespace ktops
