// The handoff, with a thread in the place of the GPU.
#include <atomic>
#include <ctime>
#include <thread>

#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

constexpr uint32_t kHidden = 64, kInner = 32, kExperts = 4, kTopK = 3, kMaxTokens = 5, kLayers = 3;
constexpr uint64_t kLong = 20'000'000'000, kShort = 2'000'000;

uint16_t bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

float widened(uint16_t value) {
  const uint32_t bits = uint32_t{value} << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// The weights of a few layers.
struct Layers {
  std::vector<uint8_t> bytes[kLayers][3];
  ktops_handoff_layer table[kLayers];

  Layers() {
    std::mt19937 random(5);
    for (uint32_t i = 0; i < kLayers; ++i) {
      for (std::vector<uint8_t>& each : bytes[i])
        each = random_weights(random, KTOPS_TYPE_Q8_0, size_t{kExperts} * kInner * kHidden);
      const auto matrix = [&](int which, uint64_t rows, uint64_t cols) {
        return ktops_matrix{bytes[i][which].data(), rows,     cols, KTOPS_TYPE_Q8_0,
                            KTOPS_LAYOUT_GGUF,      kExperts, 0};
      };
      table[i] = {matrix(0, kInner, kHidden), matrix(1, kInner, kHidden),
                  matrix(2, kHidden, kInner)};
    }
  }
};

// A handoff with its block.
struct Shared {
  Layers layers;
  ktops_handoff_layout layout{};
  void* block = nullptr;
  ktops_handoff* handoff = nullptr;

  Shared() {
    CHECK(ktops_handoff_layout_of(kHidden, kTopK, kMaxTokens, &layout) == KTOPS_OK, "layout");
    block = aligned_alloc(64, layout.num_bytes);
    memset(block, 0, layout.num_bytes);
    const ktops_handoff_args args = good_args();
    CHECK(ktops_handoff_create(&args, &handoff) == KTOPS_OK, "create");
  }
  ~Shared() {
    ktops_handoff_destroy(handoff);
    free(block);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  ktops_handoff_args good_args() const {
    return {layers.table, block, layout.num_bytes, kLayers, kHidden, kTopK, kMaxTokens};
  }
  template <class T> T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(block) + offset);
  }
  std::atomic_ref<uint32_t> flag(uint64_t offset) const {
    return std::atomic_ref<uint32_t>(*at<uint32_t>(offset));
  }
  ktops_handoff_traffic traffic() const {
    ktops_handoff_traffic found{};
    CHECK(ktops_handoff_get_traffic(handoff, &found) == KTOPS_OK, "traffic");
    return found;
  }
};

struct Request {
  uint32_t layer, num_tokens;
  std::vector<float> x, weights;
  std::vector<int32_t> ids;

  Request(std::mt19937& random, uint32_t which, uint32_t tokens)
      : layer(which), num_tokens(tokens), x(random_floats(random, size_t{tokens} * kHidden)),
        weights(random_floats(random, size_t{tokens} * kTopK)) {
    for (float& value : x)
      value = widened(bfloat16(value));
    for (uint32_t i = 0; i < tokens * kTopK; ++i)
      ids.push_back(static_cast<int32_t>(random() % (kExperts + 1)) - 1);
  }

  std::vector<float> expected(ktops_pool* pool, const Layers& layers) const {
    std::vector<float> y(x.size(), -1.0f);
    const ktops_handoff_layer& own = layers.table[layer];
    const ktops_moe_args args{own.gate,       own.up,   own.down,   x.data(), ids.data(),
                              weights.data(), y.data(), num_tokens, kTopK,    0};
    CHECK(ktops_moe_forward(pool, &args) == KTOPS_OK, "directly");
    return y;
  }

  void post(const Shared& shared, uint32_t number) const {
    auto* activations = shared.at<uint16_t>(shared.layout.activations);
    for (size_t i = 0; i < x.size(); ++i)
      activations[i] = bfloat16(x[i]);
    memcpy(shared.at<int32_t>(shared.layout.expert_ids), ids.data(), ids.size() * sizeof ids[0]);
    memcpy(shared.at<float>(shared.layout.expert_weights), weights.data(),
           weights.size() * sizeof weights[0]);
    auto* header = shared.at<uint32_t>(shared.layout.layer);
    header[0] = layer;
    header[1] = num_tokens;
    shared.flag(shared.layout.asked).store(number, std::memory_order_release);
  }
};

uint32_t wait_for_change(const Shared& shared, uint32_t before) {
  uint32_t found;
  while ((found = shared.flag(shared.layout.done).load(std::memory_order_acquire)) == before)
    std::this_thread::yield();
  return found;
}

int32_t serve_one(ktops_pool* pool, const Shared& shared, uint64_t timeout_ns = kLong) {
  return ktops_handoff_serve(pool, shared.handoff, 1, timeout_ns);
}

void check_many_requests(ktops_pool* pool) {
  constexpr uint32_t kCount = 400;
  Shared shared;
  std::mt19937 random(1);
  std::vector<Request> requests;
  std::vector<std::vector<float>> expected, found(kCount);
  for (uint32_t i = 0; i < kCount; ++i) {
    requests.emplace_back(random, i % kLayers, 1 + i % kMaxTokens);
    expected.push_back(requests[i].expected(pool, shared.layers));
  }
  std::thread gpu([&] {
    for (uint32_t i = 0; i < kCount; ++i) {
      requests[i].post(shared, i + 1);
      const uint32_t number = wait_for_change(shared, i);
      CHECK(number == i + 1, "request %u was answered as %u", i + 1, number);
      const auto* result = shared.at<float>(shared.layout.result);
      found[i].assign(result, result + requests[i].x.size());
    }
  });
  for (uint32_t done = 0; done < kCount; done += kCount / 4) {
    const int32_t status = ktops_handoff_serve(pool, shared.handoff, kCount / 4, kLong);
    CHECK(status == KTOPS_OK, "%s", ktops_status_string(status));
  }
  gpu.join();
  for (uint32_t i = 0; i < kCount; ++i)
    CHECK(found[i] == expected[i], "request %u has another result", i + 1);
  CHECK(shared.traffic().num_requests == kCount && shared.traffic().compute_ns > 0, "traffic");
}

void check_counted_bytes(ktops_pool* pool) {
  const Shared shared;
  std::mt19937 random(2);
  Request request(random, 1, 2);
  request.ids = {3, -1, 0, 3, 0, 0};
  request.post(shared, 1);
  CHECK(serve_one(pool, shared) == KTOPS_OK, "serve");
  CHECK(shared.traffic().num_bytes == 2 * 3 * (kInner * kHidden / 32 * 34), "two experts");
}

// After a refusal the GPU is told, everything further is refused, and a reset brings it back.
void check_recovery(ktops_pool* pool, const Shared& shared, int32_t status, const char* what) {
  CHECK(shared.flag(shared.layout.done).load() == KTOPS_HANDOFF_REFUSED, "%s: not told", what);
  CHECK(serve_one(pool, shared) == status, "%s: served on", what);
  CHECK(ktops_handoff_reset(shared.handoff) == KTOPS_OK, "%s", what);
  std::mt19937 random(3);
  Request(random, 0, 1).post(shared, 1);
  CHECK(serve_one(pool, shared) == KTOPS_OK, "%s: no recovery", what);
  CHECK(shared.flag(shared.layout.done).load() == 1, "%s: no answer", what);
}

template <class Change>
void check_refused(ktops_pool* pool, int32_t status, const char* what, const Change& change) {
  const Shared shared;
  std::mt19937 random(4);
  Request request(random, 0, 2);
  uint32_t number = 1;
  change(request, number);
  request.post(shared, number);
  const int32_t found = serve_one(pool, shared);
  CHECK(found == status, "%s: %s", what, ktops_status_string(found));
  check_recovery(pool, shared, status, what);
}

void check_bad_requests(ktops_pool* pool) {
  constexpr int32_t kBad = KTOPS_ERROR_BAD_REQUEST;
  const auto refused = [pool](int32_t status, const char* what, const auto& change) {
    check_refused(pool, status, what, change);
  };
  refused(KTOPS_ERROR_EXPERT_OUT_OF_RANGE, "expert",
          [](Request& r, uint32_t&) { r.ids[4] = kExperts; });
  refused(kBad, "layer", [](Request& r, uint32_t&) { r.layer = kLayers; });
  refused(kBad, "far layer", [](Request& r, uint32_t&) { r.layer = UINT32_MAX; });
  refused(kBad, "no tokens", [](Request& r, uint32_t&) { r.num_tokens = 0; });
  refused(kBad, "many tokens", [](Request& r, uint32_t&) { r.num_tokens = kMaxTokens + 1; });
  refused(kBad, "out of step", [](Request&, uint32_t& number) { number = 2; });
}

void check_timeout(ktops_pool* pool) {
  const Shared shared;
  CHECK(serve_one(pool, shared, kShort) == KTOPS_ERROR_TIMEOUT, "nobody asked");
  check_recovery(pool, shared, KTOPS_ERROR_TIMEOUT, "timeout");
}

void check_given_up(ktops_pool* pool) {
  const Shared shared;
  shared.flag(shared.layout.given_up).store(1, std::memory_order_release);
  CHECK(serve_one(pool, shared) == KTOPS_ERROR_GIVEN_UP, "the GPU has given up");
  check_recovery(pool, shared, KTOPS_ERROR_GIVEN_UP, "given up");
}

void check_cancel(ktops_pool* pool) {
  const Shared shared;
  std::thread other([&] {
    const timespec a_moment{0, 1'000'000};
    nanosleep(&a_moment, nullptr);
    ktops_handoff_cancel(shared.handoff);
  });
  CHECK(serve_one(pool, shared) == KTOPS_ERROR_CANCELLED, "cancelled while it waits");
  other.join();
  check_recovery(pool, shared, KTOPS_ERROR_CANCELLED, "cancel");
  ktops_handoff_cancel(shared.handoff);
  CHECK(serve_one(pool, shared) == KTOPS_ERROR_CANCELLED, "cancelled before it waits");
}

void check_refused_arguments(ktops_pool* pool) {
  const Shared shared;
  ktops_handoff* handoff = nullptr;
  ktops_handoff_layout layout;
  const auto created = [&](const auto& change) {
    ktops_handoff_args args = shared.good_args();
    std::vector<ktops_handoff_layer> table(args.layers, args.layers + args.num_layers);
    args.layers = table.data();
    change(args, table.back());
    const int32_t status = ktops_handoff_create(&args, &handoff);
    CHECK((status == KTOPS_OK) == (handoff != nullptr), "status %d", status);
    ktops_handoff_destroy(handoff);
    return status;
  };
  using Args = ktops_handoff_args;
  using Layer = ktops_handoff_layer;
  CHECK(created([](Args&, Layer&) {}) == KTOPS_OK, "good");
  CHECK(created([](Args& a, Layer&) { a.block = nullptr; }) == KTOPS_ERROR_NULL_POINTER, "block");
  CHECK(created([](Args& a, Layer&) { a.layers = nullptr; }) == KTOPS_ERROR_NULL_POINTER, "layers");
  CHECK(created([](Args& a, Layer&) { --a.num_block_bytes; }) == KTOPS_ERROR_BAD_SHAPE, "bytes");
  CHECK(created([](Args& a, Layer&) { a.num_layers = 0; }) == KTOPS_ERROR_BAD_SHAPE, "no layers");
  CHECK(created([](Args& a, Layer&) { a.hidden = 32; }) == KTOPS_ERROR_BAD_SHAPE, "hidden");
  CHECK(created([](Args& a, Layer&) { a.top_k = UINT32_MAX; }) == KTOPS_ERROR_BAD_SHAPE, "top_k");
  CHECK(created([](Args& a, Layer&) { a.max_tokens = 0; }) == KTOPS_ERROR_BAD_SHAPE, "tokens");
  CHECK(created([](Args&, Layer& l) { l.up.rows = 64; }) == KTOPS_ERROR_BAD_SHAPE, "rows");
  CHECK(created([](Args&, Layer& l) { l.down.type = 29; }) == KTOPS_ERROR_UNKNOWN_TYPE, "type");
  CHECK(created([](Args& a, Layer&) { a.block = static_cast<char*>(a.block) + 4; }) ==
            KTOPS_ERROR_BAD_SHAPE,
        "alignment");
  constexpr int32_t kNull = KTOPS_ERROR_NULL_POINTER;
  CHECK(ktops_handoff_serve(nullptr, shared.handoff, 1, 0) == kNull, "no pool");
  CHECK(ktops_handoff_serve(pool, nullptr, 1, 0) == kNull, "no handoff");
  CHECK(ktops_handoff_cancel(nullptr) == kNull && ktops_handoff_reset(nullptr) == kNull, "null");
  CHECK(ktops_handoff_get_traffic(shared.handoff, nullptr) == kNull, "no place");
  CHECK(ktops_handoff_layout_of(UINT32_MAX, 8, 16, &layout) == KTOPS_ERROR_BAD_SHAPE, "large");
}

// Each side writes lines of its own, and nothing overlaps.
void check_layout() {
  ktops_handoff_layout layout;
  CHECK(ktops_handoff_layout_of(7168, 8, 16, &layout) == KTOPS_OK, "R1");
  const uint64_t ends[][2] = {{layout.asked, 4},        {layout.layer, 8},
                              {layout.given_up, 4},     {layout.activations, 229376},
                              {layout.expert_ids, 512}, {layout.expert_weights, 512},
                              {layout.done, 4},         {layout.result, 458752},
                              {layout.num_bytes, 0}};
  for (size_t i = 0; i + 1 < sizeof ends / sizeof *ends; ++i) {
    CHECK(ends[i][0] % 64 == 0, "part %zu is not on a line", i);
    CHECK(ends[i][0] + ends[i][1] <= ends[i + 1][0], "part %zu overlaps the next", i);
  }
}

} // namespace

int main() {
  check_layout();
  for (const uint32_t num_threads : {1u, 2u, 4u}) {
    const TestPool pool(num_threads);
    check_many_requests(pool);
  }
  const TestPool pool(2);
  check_counted_bytes(pool);
  check_bad_requests(pool);
  check_timeout(pool);
  check_given_up(pool);
  check_cancel(pool);
  check_refused_arguments(pool);
  return result();
}
