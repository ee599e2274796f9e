// x86-64 baseline.
#include "kernels.h"
#include "vector_scalar.h"

constexpr ktops::KernelTable ktops::kScalarKernels = make_kernel_table<Scalar>("scalar");
