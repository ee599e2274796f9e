// Which instruction sets the CPU has (cpuid) and the operating system saves (XCR0).
#include "isa_select.h"

#include <cpuid.h>
#include <cstdlib>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

namespace ktops {
namespace {

struct Isa {
  const char* name;
  const KernelTable* kernels; // null: the compiler could not build it
};

constexpr Isa kAll[] = {{"scalar", &kScalarKernels},
                        {"avx2", &kAvx2Kernels},
                        {"avx512", &kAvx512Kernels},
                        {"avx512vnni", &kAvx512VnniKernels},
                        {"avx512bf16", &kAvx512Bf16Kernels},
#ifdef KTOPS_HAVE_AMX
                        {"amx", &kAmxKernels}};
#else
                        {"amx", nullptr}};
#endif

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(uint32_t leaf, uint32_t part = 0) {
  CpuidLeaf regs;
  if (!__get_cpuid_count(leaf, part, &regs.eax, &regs.ebx, &regs.ecx, &regs.edx))
    return {};
  return regs;
}

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the tile registers when it asks for them; a signal stack that is too small
// for them, or a filter of system calls, makes it refuse.
bool may_use_tiles() {
#if defined(KTOPS_EMULATE_AMX)
  return true;
#elif defined(KTOPS_HAVE_AMX)
  constexpr uint32_t kTileConfig = 17, kTileData = 18; // in XCR0
  constexpr uint32_t kAmx = (1u << 22) | (1u << 24);   // BF16, TILE
  constexpr uint64_t kState = (uint64_t{1} << kTileConfig) | (uint64_t{1} << kTileData);
  constexpr long kRequestPermission = 0x1023; // ARCH_REQ_XCOMP_PERM
  return (cpuid(7).edx & kAmx) == kAmx && (enabled_state() & kState) == kState &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
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
  if (!(extended.ecx & (1u << 11))) // AVX512_VNNI
    return 3;
  if (!(cpuid(7, 1).eax & (1u << 5))) // AVX512_BF16
    return 4;
  return may_use_tiles() ? 6 : 5;
}

} // namespace

const KernelTable* available_kernels(uint32_t index) {
  return index < count_available() ? kAll[index].kernels : nullptr;
}

const KernelTable* select_kernels() {
  const uint32_t num_available = count_available();
  const char* cap = getenv("KTOPS_ISA");
  if (cap == nullptr || *cap == '\0')
    return kAll[num_available - 1].kernels;
  for (uint32_t i = 0; i < sizeof kAll / sizeof *kAll; ++i)
    if (strcmp(cap, kAll[i].name) == 0)
      return kAll[i < num_available ? i : num_available - 1].kernels;
  return nullptr;
}

} // namespace ktops
