// Norm, router, routed and shared experts of one layer for a few tokens. The small parts are
// computed on the calling thread, while the workers, still awake, wait for the next product.
#include "feed_forward.h"

#include "clock.h"
#include "matmul.h"
#include "moe.h"
#include "router.h"

namespace ktops {
namespace {

struct Buffers {
  float *normed, *routed, *shared; // [tokens, hidden]
  float* logits;                   // [tokens, experts]
  float* choice;
  float* expert_weights; // [tokens, top_k]

  Buffers(Carver& carver, const ktops_ffn_decode_args& args) {
    const size_t hidden = args.num_tokens * args.shared_gate.cols;
    const ktops_router& router = args.router;
    normed = carver.take<float>(hidden);
    routed = carver.take<float>(hidden);
    shared = carver.take<float>(hidden);
    logits = carver.take<float>(args.num_tokens * router.weight.rows);
    choice = carver.take<float>(router.weight.rows + router.num_groups);
    expert_weights = carver.take<float>(args.num_tokens * router.top_k);
  }
};

int32_t run_shared(ktops_pool& pool, const ktops_ffn_decode_args& args, const Buffers& buffers) {
  return moe_forward(pool, {args.shared_gate, args.shared_up, args.shared_down, buffers.normed,
                            nullptr, nullptr, buffers.shared, args.num_tokens, 1, 0});
}

int32_t run_routed(ktops_pool& pool, ktops_ffn_decode_args& args, const Buffers& buffers) {
  const ktops_router& router = args.router;
  const int32_t status =
      matmul(pool, {router.weight, buffers.normed, buffers.logits, args.num_tokens});
  if (status != KTOPS_OK)
    return status;
  for (size_t t = 0; t < args.num_tokens; ++t)
    route(pool.kernels(), router, buffers.logits + t * router.weight.rows, buffers.choice,
          args.expert_ids + t * router.top_k, buffers.expert_weights + t * router.top_k);
  const uint64_t start = now_ns();
  const int32_t result =
      moe_forward(pool, {args.gate, args.up, args.down, buffers.normed, args.expert_ids,
                         buffers.expert_weights, buffers.routed, args.num_tokens, router.top_k, 0});
  args.expert_ns = now_ns() - start;
  return result;
}

} // namespace

int32_t ffn_decode(ktops_pool& pool, ktops_ffn_decode_args& args) {
  const bool is_routed = args.router.weight.data != nullptr;
  Carver measure(nullptr);
  Buffers(measure, args);
  std::byte* base = pool.outer_scratch().reserve(measure.used());
  if (base == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  Carver carver(base);
  const Buffers buffers(carver, args);
  const size_t hidden = args.shared_gate.cols;
  for (size_t t = 0; t < args.num_tokens; ++t)
    pool.kernels().rms_norm(args.x + t * hidden, args.input_norm, args.norm_eps,
                            buffers.normed + t * hidden, hidden);
  args.expert_ns = 0;
  if (is_routed)
    if (const int32_t status = run_routed(pool, args, buffers); status != KTOPS_OK)
      return status;
  if (const int32_t status = run_shared(pool, args, buffers); status != KTOPS_OK)
    return status;
  for (size_t i = 0; i < args.num_tokens * hidden; ++i)
    args.x[i] += is_routed ? buffers.routed[i] + buffers.shared[i] : buffers.shared[i];
  return KTOPS_OK;
}

} // namespace ktops
