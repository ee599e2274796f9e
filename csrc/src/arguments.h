// Checks of arguments for more than one file of the C border.
#pragma once

#include <initializer_list>

#include "ktops.h"

namespace ktops {

// Whether a product of sizes is small enough for every sum of such products to stay in 64 bits.
bool fits(uint64_t a, uint64_t b, uint64_t c = 1);

int32_t check_matrix(const ktops_matrix& matrix);
// The first refusal of those of check_matrix.
int32_t check_matrices(std::initializer_list<const ktops_matrix*> matrices);

// Whether gate, up and down are num_experts experts that take and give `hidden` values.
bool are_experts(const ktops_matrix& gate, const ktops_matrix& up, const ktops_matrix& down,
                 uint64_t hidden, uint64_t num_experts);

// KTOPS_OK when moe_forward may follow every pointer.
int32_t check_moe(const ktops_moe_args& args);

} // namespace ktops
