#pragma once

#include "kernel_table.h"

namespace ktops {

// The index-th instruction set this machine can run, plainest first; null past the end.
const KernelTable* available_kernels(uint32_t index);

// The best one, no better than KTOPS_ISA says; null when that names none we know.
const KernelTable* select_kernels();

} // namespace ktops
