// AVX-512 F, BW, VL, DQ.
#include "kernels.h"
#include "vector_avx512.h"

constexpr ktops::KernelTable ktops::kAvx512Kernels = make_kernel_table<Avx512>("avx512");
