// The C border of the halves of a decoder layer.
#include "arguments.h"
#include "attention.h"
#include "feed_forward.h"
#include "pool.h"
#include "router.h"

namespace {

using ktops::are_experts;
using ktops::check_matrices;
using ktops::check_matrix;
using ktops::fits;
using ktops::PoolLock;

bool is_single(const ktops_matrix& matrix, uint64_t rows, uint64_t cols) {
  return matrix.num_experts == 1 && matrix.rows == rows && matrix.cols == cols && rows != 0;
}

int32_t check_mla_shapes(const ktops_mla_decode_args& args) {
  const uint64_t heads = args.key_up.num_experts, rank = args.key_up.rows, hidden = args.kv_a.cols;
  if (args.kv_a.rows < rank || rank == 0)
    return KTOPS_ERROR_BAD_SHAPE;
  const uint64_t rope = args.kv_a.rows - rank, head = args.key_up.cols + rope;
  const bool is_compressed = args.query_a.data != nullptr;
  const uint64_t query_rank = is_compressed ? args.query_a.rows : hidden;
  if (is_compressed && !is_single(args.query_a, query_rank, hidden))
    return KTOPS_ERROR_BAD_SHAPE;
  const bool fit = rope % 2 == 0 && is_single(args.kv_a, rank + rope, hidden) &&
                   is_single(args.query_b, heads * head, query_rank) &&
                   args.value_up.num_experts == heads && args.value_up.cols == rank &&
                   is_single(args.output, hidden, heads * args.value_up.rows) &&
                   args.score_scale > 0 && fits(args.cache_slots, rank + rope) &&
                   fits(args.num_tokens, hidden) && fits(args.num_tokens, heads, head + rank);
  return fit ? KTOPS_OK : KTOPS_ERROR_BAD_SHAPE;
}

int32_t check_context(const ktops_context& context, uint64_t cache_slots) {
  if (context.num_slots == 0 || context.num_slots > cache_slots)
    return KTOPS_ERROR_BAD_SHAPE;
  if (context.slots == nullptr)
    return context.first_slot <= cache_slots - context.num_slots ? KTOPS_OK : KTOPS_ERROR_BAD_SHAPE;
  for (uint64_t i = 0; i < context.num_slots; ++i)
    if (context.slots[i] < 0 || static_cast<uint64_t>(context.slots[i]) >= cache_slots)
      return KTOPS_ERROR_BAD_SHAPE;
  return KTOPS_OK;
}

int32_t check_mla(const ktops_mla_decode_args& args) {
  const bool is_compressed = args.query_a.data != nullptr;
  if (is_compressed)
    if (const int32_t status = check_matrix(args.query_a); status != KTOPS_OK)
      return status;
  int32_t status =
      check_matrices({&args.query_b, &args.kv_a, &args.key_up, &args.value_up, &args.output});
  if (status == KTOPS_OK)
    status = check_mla_shapes(args);
  if (status != KTOPS_OK || args.num_tokens == 0)
    return status;
  if (args.input_norm == nullptr || args.latent_norm == nullptr || args.x == nullptr ||
      args.rotations == nullptr || args.cache == nullptr || args.contexts == nullptr ||
      (is_compressed && args.query_norm == nullptr))
    return KTOPS_ERROR_NULL_POINTER;
  for (uint64_t t = 0; t < args.num_tokens; ++t)
    if (status = check_context(args.contexts[t], args.cache_slots); status != KTOPS_OK)
      return status;
  return KTOPS_OK;
}

int32_t check_router(const ktops_router& router, uint64_t hidden) {
  if (const int32_t status = check_matrix(router.weight); status != KTOPS_OK)
    return status;
  const bool fit = is_single(router.weight, router.weight.rows, hidden) && router.top_k != 0 &&
                   router.top_k <= router.weight.rows && router.num_groups != 0 &&
                   router.weight.rows % router.num_groups == 0 && router.chosen_groups != 0 &&
                   router.group_best != 0 && router.group_best <= ktops::kMostGroupBest;
  return fit ? KTOPS_OK : KTOPS_ERROR_BAD_SHAPE;
}

int32_t check_routed(const ktops_ffn_decode_args& args, uint64_t hidden) {
  int32_t status = check_router(args.router, hidden);
  if (status == KTOPS_OK)
    status = check_matrices({&args.gate, &args.up, &args.down});
  if (status != KTOPS_OK)
    return status;
  if (!are_experts(args.gate, args.up, args.down, hidden, args.router.weight.rows) ||
      !fits(args.num_tokens, args.router.top_k, args.gate.rows))
    return KTOPS_ERROR_BAD_SHAPE;
  return args.num_tokens != 0 && args.expert_ids == nullptr ? KTOPS_ERROR_NULL_POINTER : KTOPS_OK;
}

int32_t check_ffn(const ktops_ffn_decode_args& args) {
  const uint64_t hidden = args.shared_gate.cols;
  int32_t status = check_matrices({&args.shared_gate, &args.shared_up, &args.shared_down});
  if (status == KTOPS_OK && args.router.weight.data != nullptr)
    status = check_routed(args, hidden);
  if (status != KTOPS_OK)
    return status;
  if (!are_experts(args.shared_gate, args.shared_up, args.shared_down, hidden, 1) ||
      !fits(args.num_tokens, hidden) || !fits(args.num_tokens, args.shared_gate.rows))
    return KTOPS_ERROR_BAD_SHAPE;
  return args.num_tokens != 0 && (args.x == nullptr || args.input_norm == nullptr)
             ? KTOPS_ERROR_NULL_POINTER
             : KTOPS_OK;
}

} // namespace

extern "C" {

int32_t ktops_mla_decode(ktops_pool* pool, const ktops_mla_decode_args* args) {
  if (pool == nullptr || args == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_mla(*args); status != KTOPS_OK || args->num_tokens == 0)
    return status;
  const PoolLock lock(pool);
  return ktops::mla_decode(*pool, *args);
}

int32_t ktops_ffn_decode(ktops_pool* pool, ktops_ffn_decode_args* args) {
  if (pool == nullptr || args == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_ffn(*args); status != KTOPS_OK || args->num_tokens == 0)
    return status;
  const PoolLock lock(pool);
  return ktops::ffn_decode(*pool, *args);
}

} // extern "C"
