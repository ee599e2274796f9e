#include "handoff.h"

#include <algorithm>
#include <cstring>
#include <immintrin.h>
#include <new>

#include "arguments.h"
#include "blocks.h"
#include "clock.h"
#include "moe.h"
#include "pool.h"

namespace {

constexpr uint64_t kLineBytes = 64;
// Largest sizes, so that no product of them leaves 64 bits.
constexpr uint32_t kMaxHidden = 1 << 20, kMaxTopK = 1 << 10, kMaxTokens = 1 << 12;
// Looks at the flag between two looks at the clock: some ten microseconds.
constexpr int kLooks = 256;

// Numbers have 31 bits, so that none is KTOPS_HANDOFF_REFUSED.
uint32_t number_after(uint32_t number) { return (number + 1) & INT32_MAX; }

uint64_t one_expert_bytes(const ktops_matrix& matrix) {
  const ktops::TypeInfo info = ktops::type_info(matrix.type);
  return matrix.rows * (matrix.cols / info.block_size) * info.block_bytes;
}

// Keeps the workers of a pool from sleeping while a request may come any moment.
class Awake {
 public:
  explicit Awake(ktops_pool& pool) : pool_(pool) { pool_.keep_awake(true); }
  ~Awake() { pool_.keep_awake(false); }
  Awake(const Awake&) = delete;
  Awake& operator=(const Awake&) = delete;

 private:
  ktops_pool& pool_;
};

} // namespace

ktops_handoff_layout ktops::handoff_layout(uint32_t hidden, uint32_t top_k, uint32_t max_tokens) {
  ktops_handoff_layout layout{};
  if (hidden == 0 || top_k == 0 || max_tokens == 0 || hidden > kMaxHidden || top_k > kMaxTopK ||
      max_tokens > kMaxTokens)
    return layout;
  uint64_t used = 0;
  const auto place = [&used](uint64_t num_bytes) {
    const uint64_t offset = used;
    used += (num_bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
    return offset;
  };
  const uint64_t pairs = uint64_t{max_tokens} * top_k, values = uint64_t{max_tokens} * hidden;
  layout.asked = place(sizeof(uint32_t));
  layout.layer = place(2 * sizeof(uint32_t));
  layout.given_up = place(sizeof(uint32_t));
  layout.activations = place(values * sizeof(uint16_t));
  layout.expert_ids = place(pairs * sizeof(int32_t));
  layout.expert_weights = place(pairs * sizeof(float));
  layout.done = place(sizeof(uint32_t));
  layout.result = place(values * sizeof(float));
  layout.num_bytes = used;
  return layout;
}

ktops_handoff::ktops_handoff(const ktops_handoff_args& args)
    : args_(args), layout_(ktops::handoff_layout(args.hidden, args.top_k, args.max_tokens)),
      block_(static_cast<std::byte*>(args.block)) {}

int32_t ktops_handoff::create(const ktops_handoff_args& args, ktops_handoff** handoff) {
  auto* made = new (std::nothrow) ktops_handoff(args);
  if (made == nullptr || !made->reserve()) {
    delete made;
    return KTOPS_ERROR_OUT_OF_MEMORY;
  }
  *handoff = made;
  return KTOPS_OK;
}

bool ktops_handoff::reserve() {
  const auto carve = [this](std::byte* base) {
    const size_t tokens = args_.max_tokens;
    ktops::Carver carver(base);
    layers_ = carver.take<ktops_handoff_layer>(args_.num_layers);
    x_ = carver.take<float>(tokens * args_.hidden);
    expert_ids_ = carver.take<int32_t>(tokens * args_.top_k);
    expert_weights_ = carver.take<float>(tokens * args_.top_k);
    return carver.used();
  };
  std::byte* base = memory_.reserve(carve(nullptr));
  if (base == nullptr)
    return false;
  carve(base);
  std::copy_n(args_.layers, args_.num_layers, layers_);
  return true;
}

std::atomic_ref<uint32_t> ktops_handoff::flag(uint64_t offset) const {
  return std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(block_ + offset));
}

int32_t ktops_handoff::serve(ktops_pool& pool, uint32_t count, uint64_t timeout_ns) {
  const Awake awake(pool);
  for (uint32_t i = 0; i < count && failure_ == KTOPS_OK; ++i) {
    const uint32_t number = number_after(last_number_);
    failure_ = await(number, timeout_ns);
    const uint64_t came = ktops::now_ns();
    if (failure_ == KTOPS_OK)
      failure_ = answer(pool, number);
    compute_ns_.fetch_add(ktops::now_ns() - came, std::memory_order_relaxed);
  }
  if (failure_ != KTOPS_OK)
    flag(layout_.done).store(KTOPS_HANDOFF_REFUSED, std::memory_order_release);
  return failure_;
}

int32_t ktops_handoff::await(uint32_t number, uint64_t timeout_ns) {
  for (const uint64_t began = ktops::now_ns();;) {
    if (is_cancelled_.load(std::memory_order_relaxed))
      return KTOPS_ERROR_CANCELLED;
    for (int i = 0; i < kLooks; ++i) {
      const uint32_t asked = flag(layout_.asked).load(std::memory_order_acquire);
      if (asked == number)
        return KTOPS_OK;
      if (asked != last_number_)
        return KTOPS_ERROR_BAD_REQUEST;
      _mm_pause();
    }
    if (flag(layout_.given_up).load(std::memory_order_acquire) != 0)
      return KTOPS_ERROR_GIVEN_UP;
    if (ktops::now_ns() - began >= timeout_ns)
      return KTOPS_ERROR_TIMEOUT;
  }
}

int32_t ktops_handoff::answer(ktops_pool& pool, uint32_t number) {
  uint32_t header[2]; // layer, number of tokens
  memcpy(header, block_ + layout_.layer, sizeof header);
  const uint32_t layer = header[0], num_tokens = header[1];
  if (layer >= args_.num_layers || num_tokens == 0 || num_tokens > args_.max_tokens)
    return KTOPS_ERROR_BAD_REQUEST;
  copy_request(num_tokens);
  const ktops_moe_args request{layers_[layer].gate,
                               layers_[layer].up,
                               layers_[layer].down,
                               x_,
                               expert_ids_,
                               expert_weights_,
                               reinterpret_cast<float*>(block_ + layout_.result),
                               num_tokens,
                               args_.top_k,
                               0};
  if (const int32_t status = ktops::check_moe(request); status != KTOPS_OK)
    return status;
  pool.lock();
  const int32_t status = ktops::moe_forward(pool, request);
  pool.unlock();
  if (status != KTOPS_OK)
    return status;
  last_number_ = number;
  flag(layout_.done).store(number, std::memory_order_release);
  num_requests_.fetch_add(1, std::memory_order_relaxed);
  num_bytes_.fetch_add(chosen_bytes(request), std::memory_order_relaxed);
  return KTOPS_OK;
}

void ktops_handoff::copy_request(uint32_t num_tokens) {
  const size_t values = size_t{num_tokens} * args_.hidden;
  const auto* activations = reinterpret_cast<const uint16_t*>(block_ + layout_.activations);
  auto* bits = reinterpret_cast<uint8_t*>(x_);
  for (size_t i = 0; i < values; ++i) {
    const uint32_t widened = uint32_t{activations[i]} << 16;
    memcpy(bits + i * sizeof widened, &widened, sizeof widened);
  }
  const size_t pairs = size_t{num_tokens} * args_.top_k;
  memcpy(expert_ids_, block_ + layout_.expert_ids, pairs * sizeof *expert_ids_);
  memcpy(expert_weights_, block_ + layout_.expert_weights, pairs * sizeof *expert_weights_);
}

// Orders our copy of the ids, which nobody needs any more.
uint64_t ktops_handoff::chosen_bytes(const ktops_moe_args& args) {
  int32_t* end = expert_ids_ + args.num_tokens * args.top_k;
  std::sort(expert_ids_, end);
  end = std::unique(expert_ids_, end);
  const auto chosen = static_cast<uint64_t>(end - std::lower_bound(expert_ids_, end, 0));
  return chosen *
         (one_expert_bytes(args.gate) + one_expert_bytes(args.up) + one_expert_bytes(args.down));
}

void ktops_handoff::reset() {
  last_number_ = 0;
  failure_ = KTOPS_OK;
  is_cancelled_.store(false, std::memory_order_relaxed);
  for (const uint64_t offset : {layout_.asked, layout_.given_up, layout_.done})
    flag(offset).store(0, std::memory_order_release);
}

ktops_handoff_traffic ktops_handoff::traffic() const {
  constexpr auto relaxed = std::memory_order_relaxed;
  return {num_requests_.load(relaxed), num_bytes_.load(relaxed), compute_ns_.load(relaxed)};
}
