// AVX2, FMA, F16C.
#include "kernels.h"
#include "vector_avx2.h"

constexpr ktops::KernelTable ktops::kAvx2Kernels = make_kernel_table<Avx2>("avx2");
