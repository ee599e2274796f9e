// Activations to integers on one instruction set (the argument) against the plain form, to the bit.
#include <cmath>
#include <limits>

#include "../src/kernel_table.h"
#include "check.h"
#include "random_blocks.h"

using namespace testing;

namespace {

constexpr size_t kGroups = 7;

struct Record {
  std::vector<uint8_t> lines = std::vector<uint8_t>(kGroups * ktops::kLineBytes, 0xEE);
  ktops::GroupMeta metas[kGroups] = {};
};

Record quantized(const ktops::KernelTable& kernels, const std::vector<float>& x) {
  Record record;
  const Guarded guarded(x.data(), x.size() * sizeof(float));
  kernels.quantize(guarded.floats(), kGroups, record.lines.data(), record.metas);
  return record;
}

void check_same_bits(const ktops::KernelTable& kernels, const std::vector<float>& x,
                     const char* what) {
  const Record expected = quantized(ktops::kScalarKernels, x), found = quantized(kernels, x);
  CHECK(found.lines == expected.lines, "%s: other integers", what);
  CHECK(memcmp(found.metas, expected.metas, sizeof found.metas) == 0, "%s: other sums", what);
}

// The plain form itself: every integer is the nearest, and both of its bytes are signed.
void check_plain_form(const std::vector<float>& x) {
  const Record record = quantized(ktops::kScalarKernels, x);
  for (size_t g = 0; g < kGroups; ++g) {
    const auto* line = reinterpret_cast<const int8_t*>(record.lines.data()) + 64 * g;
    int32_t sums[2] = {0, 0};
    for (size_t i = 0; i < 32; ++i) {
      const int32_t q = 256 * line[i] + line[32 + i];
      sums[i / 16] += q;
      const double error = std::abs(static_cast<double>(record.metas[g].scale) * q -
                                    static_cast<double>(x[32 * g + i]));
      CHECK(error <= 0.51 * static_cast<double>(record.metas[g].scale), "value %zu of group %zu", i,
            g);
    }
    CHECK(record.metas[g].minus_half_sums[0] == -sums[0] &&
              record.metas[g].minus_half_sums[1] == -sums[1] &&
              record.metas[g].minus_sum == -sums[0] - sums[1],
          "sums of group %zu", g);
  }
}

// An infinity or a NaN anywhere in a group shows in its scale.
void check_not_finite(const ktops::KernelTable& kernels, const std::vector<float>& x) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()})
    for (size_t i = 0; i < 32; ++i) {
      std::vector<float> values = x;
      values[32 + i] = bad;
      const Record record = quantized(kernels, values);
      CHECK(!std::isfinite(record.metas[1].scale), "%g at %zu is lost", static_cast<double>(bad),
            i);
      CHECK(std::isfinite(record.metas[0].scale) && std::isfinite(record.metas[2].scale),
            "%g at %zu spreads", static_cast<double>(bad), i);
    }
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !choose_isa(argv[1]))
    return kSkipped;
  const TestPool pool(1);
  const ktops::KernelTable& kernels = static_cast<ktops_pool*>(pool)->kernels();
  std::mt19937 random(11);
  for (int run = 0; run < 2000; ++run) {
    std::vector<float> x = random_floats(random, 32 * kGroups);
    if (run == 0)
      check_not_finite(kernels, x);
    check_plain_form(x);
    check_same_bits(kernels, x, "ordinary values");
    for (float& value : x)
      value = std::ldexp(value, static_cast<int>(random() % 16) - 8);
    check_same_bits(kernels, x, "values of many sizes");
    // Values halfway between two integers: the peak is the largest integer itself.
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = i % 32 == 0 ? ktops::kLargestInteger
                         : static_cast<float>(static_cast<int>(random() % 65'278) - 32'639) + 0.5f;
    check_same_bits(kernels, x, "halves");
    for (float& value : x)
      value = std::ldexp(value, -126);
    check_same_bits(kernels, x, "tiny values");
    for (float& value : x)
      value = random() % 2 == 0 ? 0.0f : -0.0f;
    check_same_bits(kernels, x, "zeros");
    for (float& value : x)
      value = (random() % 2 == 0 ? 1.0f : -1.0f) * std::numeric_limits<float>::max();
    check_same_bits(kernels, x, "the largest values");
  }
  return result();
}
