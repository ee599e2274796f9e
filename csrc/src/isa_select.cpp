// Which instruction sets the CPU has (cpuid) and the operating system saves (XCR0).
#include "isa_select.h"

#include <cpuid.h>
#include <cstdlib>
#include <cstring>

namespace ktops {
namespace {

constexpr const KernelTable* kAll[] = {&kScalarKernels, &kAvx2Kernels, &kAvx512Kernels,
                                       &kAvx512VnniKernels};
constexpr uint32_t kNumAll = sizeof kAll / sizeof *kAll;

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(uint32_t leaf) {
  CpuidLeaf regs;
  if (!__get_cpuid_count(leaf, 0, &regs.eax, &regs.ebx, &regs.ecx, &regs.edx))
    return {};
  return regs;
}

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// How many of kAll, from the plainest, this machine can run.
uint32_t count_available() {
  const CpuidLeaf basic = cpuid(1), extended = cpuid(7);
  const bool fma = basic.ecx & (1u << 12), osxsave = basic.ecx & (1u << 27);
  const bool avx = basic.ecx & (1u << 28), f16c = basic.ecx & (1u << 29);
  if (!osxsave || !avx || !fma || !f16c || !(extended.ebx & (1u << 5)))
    return 1;
  const uint64_t state = enabled_state();
  if ((state & 0x6) != 0x6) // SSE and AVX registers
    return 1;
  constexpr uint32_t kAvx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); // F DQ BW VL
  if ((extended.ebx & kAvx512) != kAvx512 || (state & 0xE6) != 0xE6)
    return 2;
  return extended.ecx & (1u << 11) ? 4 : 3; // AVX512_VNNI
}

} // namespace

const KernelTable* available_kernels(uint32_t index) {
  return index < count_available() ? kAll[index] : nullptr;
}

const KernelTable* select_kernels() {
  const uint32_t num_available = count_available();
  const char* cap = getenv("KTOPS_ISA");
  if (cap == nullptr || *cap == '\0')
    return kAll[num_available - 1];
  for (uint32_t i = 0; i < kNumAll; ++i)
    if (strcmp(cap, kAll[i]->name) == 0)
      return kAll[i < num_available ? i : num_available - 1];
  return nullptr;
}

} // namespace ktops
