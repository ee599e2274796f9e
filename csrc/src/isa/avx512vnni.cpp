// AVX-512 with VNNI (Cascade Lake 2019, Zen 4 2022).
#include "avx512vnni.h"
#include "kernels.h"

constexpr ktops::KernelTable ktops::kAvx512VnniKernels =
    make_kernel_table<Avx512Vnni>("avx512vnni");
