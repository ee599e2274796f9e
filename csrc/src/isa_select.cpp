// Which instruction sets the CPU has (cpuid) and the operating system saves (XCR0).
#include "isa_select.h"

#include <cpuid.h>
#include <cstdlib>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

namespace ktops {
namespace {

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

bool may_use_scalar() { return true; }

bool may_use_avx2() {
  const CpuidLeaf basic = cpuid(1);
  const bool fma = basic.ecx & (1u << 12), osxsave = basic.ecx & (1u << 27);
  const bool avx = basic.ecx & (1u << 28), f16c = basic.ecx & (1u << 29);
  return osxsave && avx && fma && f16c && (cpuid(7).ebx & (1u << 5)) &&
         (enabled_state() & 0x6) == 0x6; // SSE and AVX registers
}

bool may_use_avx512() {
  constexpr uint32_t kAvx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); // F DQ BW VL
  return may_use_avx2() && (cpuid(7).ebx & kAvx512) == kAvx512 && (enabled_state() & 0xE6) == 0xE6;
}

bool may_use_avx512vnni() { return may_use_avx512() && (cpuid(7).ecx & (1u << 11)); }

// Of AMD alone: its cores make a bfloat16 dot product a cycle, like one of bytes. On Intel's, VNNI
// is twice as fast (measured on Emerald Rapids).
bool may_use_avx512bf16() {
  const CpuidLeaf vendor = cpuid(0);
  const bool amd = vendor.ebx == signature_AMD_ebx && vendor.ecx == signature_AMD_ecx &&
                   vendor.edx == signature_AMD_edx;
  return amd && may_use_avx512vnni() && (cpuid(7, 1).eax & (1u << 5));
}

// Linux gives a process the tile registers when it asks for them; a signal stack that is too small
// for them, or a filter of system calls, makes it refuse.
bool may_use_amx() {
#if defined(KTOPS_EMULATE_AMX)
  return may_use_avx512vnni();
#elif defined(KTOPS_HAVE_AMX)
  constexpr uint32_t kTileConfig = 17, kTileData = 18; // in XCR0
  constexpr uint32_t kAmx = (1u << 22) | (1u << 24);   // BF16, TILE
  constexpr uint64_t kState = (uint64_t{1} << kTileConfig) | (uint64_t{1} << kTileData);
  constexpr long kRequestPermission = 0x1023; // ARCH_REQ_XCOMP_PERM
  return may_use_avx512vnni() && (cpuid(7).edx & kAmx) == kAmx &&
         (enabled_state() & kState) == kState &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

struct Isa {
  const char* name;
  const KernelTable* kernels; // null: the compiler could not build it
  bool (*may_use)();
};

constexpr Isa kAll[] = {{"scalar", &kScalarKernels, may_use_scalar},
                        {"avx2", &kAvx2Kernels, may_use_avx2},
                        {"avx512", &kAvx512Kernels, may_use_avx512},
                        {"avx512vnni", &kAvx512VnniKernels, may_use_avx512vnni},
                        {"avx512bf16", &kAvx512Bf16Kernels, may_use_avx512bf16},
#ifdef KTOPS_HAVE_AMX
                        {"amx", &kAmxKernels, may_use_amx}};
#else
                        {"amx", nullptr, may_use_amx}};
#endif

} // namespace

const KernelTable* available_kernels(uint32_t index) {
  for (const Isa& isa : kAll)
    if (isa.may_use() && index-- == 0)
      return isa.kernels;
  return nullptr;
}

const KernelTable* select_kernels() {
  const char* cap = getenv("KTOPS_ISA");
  const bool is_capped = cap != nullptr && *cap != '\0';
  const KernelTable* best = nullptr;
  for (const Isa& isa : kAll) {
    if (isa.may_use())
      best = isa.kernels;
    if (is_capped && strcmp(cap, isa.name) == 0)
      return best;
  }
  return is_capped ? nullptr : best;
}

} // namespace ktops
