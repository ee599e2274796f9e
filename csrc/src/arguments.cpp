#include "arguments.h"

#include "blocks.h"
#include "layout.h"

namespace {

constexpr uint64_t kMaxElements = uint64_t{1} << 48;

int32_t check_expert_ids(const ktops_moe_args& args) {
  if (args.expert_ids == nullptr)
    return KTOPS_OK;
  for (uint64_t i = 0; i < args.num_tokens * args.top_k; ++i)
    if (args.expert_ids[i] >= static_cast<int64_t>(args.gate.num_experts))
      return KTOPS_ERROR_EXPERT_OUT_OF_RANGE;
  return KTOPS_OK;
}

} // namespace

bool ktops::fits(uint64_t a, uint64_t b, uint64_t c) {
  uint64_t product;
  return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product) &&
         product <= kMaxElements;
}

int32_t ktops::check_matrix(const ktops_matrix& matrix) {
  const TypeInfo info = type_info(matrix.type);
  if (info.block_bytes == 0)
    return KTOPS_ERROR_UNKNOWN_TYPE;
  if (matrix.layout > KTOPS_LAYOUT_PANEL16 ||
      (matrix.layout == KTOPS_LAYOUT_PANEL16 && packed_type(matrix.type).num_words == 0))
    return KTOPS_ERROR_UNKNOWN_LAYOUT;
  if (matrix.cols == 0 || matrix.cols % info.block_size != 0 || matrix.num_experts == 0 ||
      !fits(matrix.rows, matrix.cols, matrix.num_experts))
    return KTOPS_ERROR_BAD_SHAPE;
  if (matrix.data == nullptr && matrix.rows != 0)
    return KTOPS_ERROR_NULL_POINTER;
  return KTOPS_OK;
}

int32_t ktops::check_matrices(std::initializer_list<const ktops_matrix*> matrices) {
  for (const ktops_matrix* matrix : matrices)
    if (const int32_t status = check_matrix(*matrix); status != KTOPS_OK)
      return status;
  return KTOPS_OK;
}

bool ktops::are_experts(const ktops_matrix& gate, const ktops_matrix& up, const ktops_matrix& down,
                        uint64_t hidden, uint64_t num_experts) {
  return gate.cols == hidden && up.cols == hidden && up.rows == gate.rows && down.rows == hidden &&
         down.cols == gate.rows && gate.num_experts == num_experts &&
         up.num_experts == num_experts && down.num_experts == num_experts;
}

int32_t ktops::check_moe(const ktops_moe_args& args) {
  if (const int32_t status = check_matrices({&args.gate, &args.up, &args.down}); status != KTOPS_OK)
    return status;
  if (!are_experts(args.gate, args.up, args.down, args.gate.cols, args.gate.num_experts) ||
      args.top_k == 0 || !fits(args.num_tokens, args.top_k, args.gate.rows) ||
      !fits(args.num_tokens, args.gate.cols))
    return KTOPS_ERROR_BAD_SHAPE;
  if (args.num_tokens == 0)
    return KTOPS_OK;
  const bool ordinary = args.gate.num_experts == 1 && args.top_k == 1 &&
                        args.expert_ids == nullptr && args.expert_weights == nullptr;
  const bool routed = args.expert_ids != nullptr && args.expert_weights != nullptr;
  if (args.x == nullptr || args.y == nullptr || (!ordinary && !routed))
    return KTOPS_ERROR_NULL_POINTER;
  return check_expert_ids(args);
}
