// The C border of the handoff: arguments are checked here, requests of the GPU where they arrive.
#include "arguments.h"
#include "handoff.h"

namespace {

constexpr uint32_t kMaxLayers = 1 << 16;

int32_t check_layer(const ktops_handoff_layer& layer, const ktops_handoff_args& args) {
  const ktops_moe_args moe{layer.gate, layer.up, layer.down, nullptr,    nullptr,
                           nullptr,    nullptr,  0,          args.top_k, 0};
  if (const int32_t status = ktops::check_moe(moe); status != KTOPS_OK)
    return status;
  return layer.gate.cols == args.hidden ? KTOPS_OK : KTOPS_ERROR_BAD_SHAPE;
}

int32_t check_handoff(const ktops_handoff_args& args) {
  if (args.layers == nullptr || args.block == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  const ktops_handoff_layout layout =
      ktops::handoff_layout(args.hidden, args.top_k, args.max_tokens);
  if (layout.num_bytes == 0 || args.num_block_bytes < layout.num_bytes || args.num_layers == 0 ||
      args.num_layers > kMaxLayers || reinterpret_cast<uintptr_t>(args.block) % 64 != 0)
    return KTOPS_ERROR_BAD_SHAPE;
  for (uint32_t i = 0; i < args.num_layers; ++i)
    if (const int32_t status = check_layer(args.layers[i], args); status != KTOPS_OK)
      return status;
  return KTOPS_OK;
}

} // namespace

extern "C" {

int32_t ktops_handoff_layout_of(uint32_t hidden, uint32_t top_k, uint32_t max_tokens,
                                ktops_handoff_layout* layout) {
  if (layout == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *layout = ktops::handoff_layout(hidden, top_k, max_tokens);
  return layout->num_bytes == 0 ? KTOPS_ERROR_BAD_SHAPE : KTOPS_OK;
}

int32_t ktops_handoff_create(const ktops_handoff_args* args, ktops_handoff** handoff) {
  if (args == nullptr || handoff == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *handoff = nullptr;
  if (const int32_t status = check_handoff(*args); status != KTOPS_OK)
    return status;
  return ktops_handoff::create(*args, handoff);
}

int32_t ktops_handoff_destroy(ktops_handoff* handoff) {
  if (handoff == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  delete handoff;
  return KTOPS_OK;
}

int32_t ktops_handoff_serve(ktops_pool* pool, ktops_handoff* handoff, uint32_t count,
                            uint64_t timeout_ns) {
  if (pool == nullptr || handoff == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  return handoff->serve(*pool, count, timeout_ns);
}

int32_t ktops_handoff_cancel(ktops_handoff* handoff) {
  if (handoff == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  handoff->cancel();
  return KTOPS_OK;
}

int32_t ktops_handoff_reset(ktops_handoff* handoff) {
  if (handoff == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  handoff->reset();
  return KTOPS_OK;
}

int32_t ktops_handoff_get_traffic(const ktops_handoff* handoff, ktops_handoff_traffic* traffic) {
  if (handoff == nullptr || traffic == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *traffic = handoff->traffic();
  return KTOPS_OK;
}

} // extern "C"
