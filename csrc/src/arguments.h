// Checks of arguments for more than one file of the C border.
#pragma once

#include "ktops.h"

namespace ktops {

// KTOPS_OK when moe_forward may follow every pointer.
int32_t check_moe(const ktops_moe_args& args);

} // namespace ktops
