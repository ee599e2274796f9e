// Layers of experts that a GPU asks for, through flags in memory that both see.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "ktops.h"
#include "scratch.h"

namespace ktops {

// All zero when the block would be too large.
ktops_handoff_layout handoff_layout(uint32_t hidden, uint32_t top_k, uint32_t max_tokens);

} // namespace ktops

// The GPU raises `asked` to the number of its request and waits until `done` has the same number.
// There is never more than one request, so each side reads what the other wrote without a lock.
// What the GPU wrote is copied before it is checked: it may be anything, and may change.
struct ktops_handoff {
 public:
  // For a checked block; KTOPS_ERROR_OUT_OF_MEMORY leaves *handoff as it is.
  static int32_t create(const ktops_handoff_args& args, ktops_handoff** handoff);

  int32_t serve(ktops_pool& pool, uint32_t count, uint64_t timeout_ns);
  void cancel() { is_cancelled_.store(true, std::memory_order_relaxed); }
  void reset();
  ktops_handoff_traffic traffic() const;

 private:
  explicit ktops_handoff(const ktops_handoff_args& args);
  ktops_handoff(const ktops_handoff&) = delete;
  ktops_handoff& operator=(const ktops_handoff&) = delete;

  bool reserve();
  int32_t await(uint32_t number, uint64_t timeout_ns);
  int32_t answer(ktops_pool& pool, uint32_t number);
  void copy_request(uint32_t num_tokens);
  uint64_t chosen_bytes(const ktops_moe_args& args);
  std::atomic_ref<uint32_t> flag(uint64_t offset) const;

  const ktops_handoff_args args_;
  const ktops_handoff_layout layout_;
  std::byte* const block_;
  uint32_t last_number_ = 0;   // of the request served last
  int32_t failure_ = KTOPS_OK; // why nothing is served until the reset
  std::atomic<bool> is_cancelled_{false};
  std::atomic<uint64_t> num_requests_{0}, num_bytes_{0}, compute_ns_{0};

  // Our copies of the request, and of the layers.
  ktops::Scratch memory_;
  ktops_handoff_layer* layers_ = nullptr;
  float* x_ = nullptr;
  int32_t* expert_ids_ = nullptr;
  float* expert_weights_ = nullptr;
};
