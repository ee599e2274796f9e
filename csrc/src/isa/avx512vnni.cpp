// AVX-512 with VNNI (Cascade Lake 2019, Zen 4 2022): one instruction for a pair of products.
#include "kernels.h"
#include "vector_avx512.h"

namespace {

struct Avx512Vnni : Avx512 {
  static I dot(I acc, I w, int32_t x) { return _mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(x)); }
};

} // namespace

constexpr ktops::KernelTable ktops::kAvx512VnniKernels =
    make_kernel_table<Avx512Vnni>("avx512vnni");
