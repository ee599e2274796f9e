// What the C border promises: refusals for bad arguments, sizes, memory, names.
#include "../src/isa_select.h"
#include "../src/kernel_table.h"
#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

constexpr uint8_t kBytes[4096] = {};
constexpr float kFloats[1024] = {};
float output[1024];

ktops_matmul_args good_matmul() {
  return {{kBytes, 4, 64, KTOPS_TYPE_Q8_0, KTOPS_LAYOUT_GGUF, 1, 0}, kFloats, output, 2};
}

template <class Change> int32_t matmul_status(ktops_pool* pool, const Change& change) {
  ktops_matmul_args args = good_matmul();
  change(args);
  return ktops_matmul(pool, &args);
}

void check_matmul_refusals(ktops_pool* pool) {
  using Args = ktops_matmul_args;
  const auto expect = [&](int32_t status, void (*change)(Args&)) {
    const int32_t found = matmul_status(pool, change);
    CHECK(found == status, "%s instead of %s", ktops_status_string(found),
          ktops_status_string(status));
  };
  expect(KTOPS_OK, [](Args&) {});
  expect(KTOPS_OK, [](Args& a) { a.num_tokens = 0, a.x = nullptr, a.y = nullptr; });
  expect(KTOPS_OK, [](Args& a) { a.weight.rows = 0, a.weight.data = nullptr; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.x = nullptr; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.y = nullptr; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.weight.data = nullptr; });
  expect(KTOPS_ERROR_UNKNOWN_TYPE, [](Args& a) { a.weight.type = 3; });
  expect(KTOPS_ERROR_UNKNOWN_TYPE, [](Args& a) { a.weight.type = 1u << 31; });
  expect(KTOPS_ERROR_UNKNOWN_LAYOUT, [](Args& a) { a.weight.layout = 2; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.weight.cols = 65; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.weight.cols = 0; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.weight.num_experts = 0; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.weight.rows = UINT64_MAX; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.num_tokens = UINT64_MAX / 2; });
  expect(KTOPS_ERROR_OUT_OF_MEMORY,
         [](Args& a) { a.num_tokens = uint64_t{1} << 42, a.weight.rows = 1; });
  const Args args = good_matmul();
  CHECK(ktops_matmul(nullptr, &args) == KTOPS_ERROR_NULL_POINTER, "no pool");
  CHECK(ktops_matmul(pool, nullptr) == KTOPS_ERROR_NULL_POINTER, "no arguments");
}

void check_moe_refusals(ktops_pool* pool) {
  using Args = ktops_moe_args;
  static int32_t ids[4];
  const auto expect = [&](int32_t status, void (*change)(Args&)) {
    const ktops_matrix matrix{kBytes, 32, 32, KTOPS_TYPE_Q8_0, KTOPS_LAYOUT_GGUF, 2, 0};
    Args args{matrix, matrix, matrix, kFloats, ids, kFloats, output, 2, 2, 0};
    std::fill_n(ids, 4, 0);
    change(args);
    const int32_t found = ktops_moe_forward(pool, &args);
    CHECK(found == status, "%s instead of %s", ktops_status_string(found),
          ktops_status_string(status));
  };
  expect(KTOPS_OK, [](Args&) {});
  expect(KTOPS_OK, [](Args& a) { a.num_tokens = 0; });
  expect(KTOPS_OK, [](Args&) { ids[1] = INT32_MIN; });
  expect(KTOPS_ERROR_EXPERT_OUT_OF_RANGE, [](Args&) { ids[3] = 2; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.up.rows = 64; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.down.cols = 64; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.down.num_experts = 3; });
  expect(KTOPS_ERROR_BAD_SHAPE, [](Args& a) { a.top_k = 0; });
  expect(KTOPS_ERROR_UNKNOWN_TYPE, [](Args& a) { a.down.type = 29; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.expert_ids = nullptr; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.expert_weights = nullptr; });
  expect(KTOPS_ERROR_NULL_POINTER, [](Args& a) { a.gate.data = nullptr; });
}

void check_other_refusals() {
  ktops_pool* pool = nullptr;
  const int32_t cpus[] = {0, -5, 1 << 20};
  CHECK(ktops_pool_create(nullptr, 1, &pool) == KTOPS_ERROR_NULL_POINTER, "no list");
  CHECK(ktops_pool_create(cpus, 0, &pool) == KTOPS_ERROR_BAD_SHAPE, "no CPUs");
  CHECK(ktops_pool_create(cpus, 3, &pool) == KTOPS_OK, "CPUs that are not there: unpinned");
  ktops_pool_destroy(pool);
  CHECK(ktops_pool_destroy(nullptr) == KTOPS_ERROR_NULL_POINTER, "no pool");
  CHECK(ktops_dequantize(99, kBytes, output, 32) == KTOPS_ERROR_UNKNOWN_TYPE, "type");
  CHECK(ktops_dequantize(KTOPS_TYPE_Q8_0, kBytes, output, 33) == KTOPS_ERROR_BAD_SHAPE, "count");
  CHECK(ktops_dequantize(KTOPS_TYPE_Q8_0, nullptr, output, 32) == KTOPS_ERROR_NULL_POINTER, "null");
  for (int32_t status = 0; status < 16; ++status)
    CHECK(strlen(ktops_status_string(status)) > 5, "status %d", status);
}

void check_sizes() {
  uint32_t sizes[16] = {};
  CHECK(ktops_abi_version() == KTOPS_ABI_VERSION, "version");
  CHECK(ktops_struct_sizes(nullptr, 0) == 13, "count");
  CHECK(ktops_struct_sizes(sizes, 3) == 13 && sizes[2] != 0 && sizes[3] == 0, "capacity");
  CHECK(sizes[0] == sizeof(ktops_matrix) && sizes[1] == sizeof(ktops_matmul_args), "sizes");
}

void check_memory() {
  ktops_buffer buffer;
  for (const uint64_t num_bytes : {uint64_t{1}, uint64_t{5} << 20}) {
    CHECK(ktops_alloc(num_bytes, &buffer) == KTOPS_OK, "%lu bytes", num_bytes);
    auto* bytes = static_cast<uint8_t*>(buffer.address);
    CHECK(bytes[0] == 0 && bytes[num_bytes - 1] == 0, "not zeroed");
    memset(bytes, 1, num_bytes);
    CHECK(buffer.num_bytes == num_bytes, "fields");
    CHECK(num_bytes < 4096 || reinterpret_cast<uintptr_t>(bytes) % (2 << 20) == 0, "alignment");
    CHECK(ktops_free(&buffer) == KTOPS_OK && buffer.address == nullptr, "free");
    CHECK(ktops_free(&buffer) == KTOPS_OK, "freeing twice");
  }
  CHECK(ktops_alloc(0, &buffer) == KTOPS_ERROR_BAD_SHAPE, "nothing");
  CHECK(ktops_alloc(uint64_t{1} << 60, &buffer) == KTOPS_ERROR_OUT_OF_MEMORY, "too much");
  CHECK(ktops_alloc(UINT64_MAX, &buffer) == KTOPS_ERROR_OUT_OF_MEMORY, "far too much");
}

void check_isa_choice() {
  const char *best = nullptr, *name = nullptr;
  unsetenv("KTOPS_ISA");
  CHECK(ktops_isa(&best) == KTOPS_OK, "default");
  uint32_t count = 0;
  while (ktops_isa_available(count) != nullptr)
    ++count;
  CHECK(count >= 1 && strcmp(best, ktops_isa_available(count - 1)) == 0, "the best is the default");
  setenv("KTOPS_ISA", "amx", 1);
  CHECK(ktops_isa(&name) == KTOPS_OK && strcmp(name, best) == 0, "a cap never raises");
  setenv("KTOPS_ISA", "scalar", 1);
  CHECK(ktops_isa(&name) == KTOPS_OK && strcmp(name, "scalar") == 0, "a cap holds");
  setenv("KTOPS_ISA", "sse9", 1);
  ktops_pool* pool = nullptr;
  const int32_t cpu = 0;
  CHECK(ktops_isa(&name) == KTOPS_ERROR_UNKNOWN_ISA, "an unknown name is refused");
  CHECK(ktops_pool_create(&cpu, 1, &pool) == KTOPS_ERROR_UNKNOWN_ISA, "for pools as well");
  unsetenv("KTOPS_ISA");
}

// Every instruction set turns activations into the same integers and scales.
void check_same_integers() {
  std::mt19937 random(11);
  constexpr size_t kGroups = 64;
  std::vector<float> x = random_floats(random, 32 * kGroups);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = std::ldexp(x[i], static_cast<int>(i / 32) * 4 - 128);
  struct Result {
    uint8_t lines[64 * kGroups];
    ktops::GroupMeta metas[kGroups];
  };
  Result expected, found;
  ktops::available_kernels(0)->quantize(x.data(), kGroups, expected.lines, expected.metas);
  for (uint32_t i = 1; const ktops::KernelTable* kernels = ktops::available_kernels(i); ++i) {
    kernels->quantize(x.data(), kGroups, found.lines, found.metas);
    CHECK(memcmp(&expected, &found, sizeof found) == 0, "%s differs", kernels->name);
  }
}

} // namespace

int main() {
  {
    const TestPool pool(2);
    check_matmul_refusals(pool);
    check_moe_refusals(pool);
  }
  check_other_refusals();
  check_sizes();
  check_memory();
  check_isa_choice();
  check_same_integers();
  return result();
}
