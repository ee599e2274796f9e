// The C border: arguments are checked here, once, before anything follows a pointer.
#include "ktops.h"

#include <initializer_list>

#include "arguments.h"
#include "blocks.h"
#include "dequantize.h"
#include "isa_select.h"
#include "matmul.h"
#include "memory.h"
#include "moe.h"
#include "pack.h"
#include "pool.h"

namespace {

using ktops::check_matrix;
using ktops::fits;
using ktops::PoolLock;

int32_t check_matmul(const ktops_matmul_args& args) {
  if (const int32_t status = check_matrix(args.weight); status != KTOPS_OK)
    return status;
  if (!fits(args.num_tokens, args.weight.cols, args.weight.num_experts) ||
      !fits(args.num_tokens, args.weight.rows, args.weight.num_experts))
    return KTOPS_ERROR_BAD_SHAPE;
  if (args.num_tokens != 0 && (args.x == nullptr || args.y == nullptr))
    return KTOPS_ERROR_NULL_POINTER;
  return KTOPS_OK;
}

bool is_row_range(const ktops_matrix& matrix, uint64_t first_row, uint64_t num_rows) {
  const uint64_t all_rows = matrix.rows * matrix.num_experts;
  return first_row <= all_rows && num_rows <= all_rows - first_row;
}

// A range may begin and end between panels, or at the ends of an expert.
int32_t check_read(const ktops_read_args& args) {
  if (const int32_t status = check_matrix(args.target); status != KTOPS_OK)
    return status;
  if (!is_row_range(args.target, args.first_row, args.num_rows))
    return KTOPS_ERROR_BAD_SHAPE;
  if (args.num_rows == 0)
    return KTOPS_OK;
  for (const uint64_t row : {args.first_row, args.first_row + args.num_rows})
    if (row % args.target.rows % ktops::kPanelRows != 0)
      return KTOPS_ERROR_BAD_SHAPE;
  return KTOPS_OK;
}

} // namespace

extern "C" {

uint32_t ktops_abi_version(void) { return KTOPS_ABI_VERSION; }

uint32_t ktops_struct_sizes(uint32_t* sizes, uint32_t capacity) {
  constexpr uint32_t kSizes[] = {
      sizeof(ktops_matrix),         sizeof(ktops_matmul_args),     sizeof(ktops_moe_args),
      sizeof(ktops_buffer),         sizeof(ktops_read_args),       sizeof(ktops_handoff_layer),
      sizeof(ktops_handoff_layout), sizeof(ktops_handoff_args),    sizeof(ktops_handoff_traffic),
      sizeof(ktops_context),        sizeof(ktops_mla_decode_args), sizeof(ktops_router),
      sizeof(ktops_ffn_decode_args)};
  constexpr uint32_t kCount = sizeof kSizes / sizeof *kSizes;
  for (uint32_t i = 0; sizes != nullptr && i < capacity && i < kCount; ++i)
    sizes[i] = kSizes[i];
  return kCount;
}

const char* ktops_status_string(int32_t status) {
  switch (status) {
  case KTOPS_OK:
    return "success";
  case KTOPS_ERROR_NULL_POINTER:
    return "a required pointer is null";
  case KTOPS_ERROR_UNKNOWN_TYPE:
    return "the weight type is not supported";
  case KTOPS_ERROR_UNKNOWN_LAYOUT:
    return "the weight layout is not supported";
  case KTOPS_ERROR_BAD_SHAPE:
    return "the shapes do not fit together, or a row is not a whole number of blocks";
  case KTOPS_ERROR_EXPERT_OUT_OF_RANGE:
    return "an expert id is not below the number of experts";
  case KTOPS_ERROR_OUT_OF_MEMORY:
    return "there is not enough memory";
  case KTOPS_ERROR_THREADS:
    return "a thread could not be started";
  case KTOPS_ERROR_UNKNOWN_ISA:
    return "KTOPS_ISA names no known instruction set";
  case KTOPS_ERROR_FILE:
    return "the file cannot be read, or is too short";
  case KTOPS_ERROR_TIMEOUT:
    return "the GPU did not ask in time";
  case KTOPS_ERROR_CANCELLED:
    return "cancelled";
  case KTOPS_ERROR_GIVEN_UP:
    return "the GPU did not get its answer in time";
  case KTOPS_ERROR_BAD_REQUEST:
    return "the GPU asked for something that is not there";
  default:
    return "unknown status";
  }
}

int32_t ktops_isa(const char** name) {
  if (name == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  const ktops::KernelTable* kernels = ktops::select_kernels();
  if (kernels == nullptr)
    return KTOPS_ERROR_UNKNOWN_ISA;
  *name = kernels->name;
  return KTOPS_OK;
}

const char* ktops_isa_available(uint32_t index) {
  const ktops::KernelTable* kernels = ktops::available_kernels(index);
  return kernels == nullptr ? nullptr : kernels->name;
}

int32_t ktops_type_block(uint32_t type, uint32_t* block_size, uint32_t* block_bytes) {
  const ktops::TypeInfo info = ktops::type_info(type);
  if (info.block_bytes == 0)
    return KTOPS_ERROR_UNKNOWN_TYPE;
  if (block_size == nullptr || block_bytes == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *block_size = info.block_size;
  *block_bytes = info.block_bytes;
  return KTOPS_OK;
}

int32_t ktops_alloc(uint64_t num_bytes, ktops_buffer* buffer) {
  if (buffer == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *buffer = {};
  if (num_bytes == 0)
    return KTOPS_ERROR_BAD_SHAPE;
  buffer->address = ktops::map_memory(num_bytes, &buffer->huge_page_errno);
  if (buffer->address == nullptr)
    return KTOPS_ERROR_OUT_OF_MEMORY;
  buffer->num_bytes = num_bytes;
  return KTOPS_OK;
}

int32_t ktops_free(ktops_buffer* buffer) {
  if (buffer == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  ktops::unmap_memory(buffer->address, buffer->num_bytes);
  *buffer = {};
  return KTOPS_OK;
}

int32_t ktops_pool_create(const int32_t* cpus, uint32_t num_cpus, ktops_pool** pool) {
  if (cpus == nullptr || pool == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *pool = nullptr;
  if (num_cpus == 0)
    return KTOPS_ERROR_BAD_SHAPE;
  return ktops_pool::create(cpus, num_cpus, pool);
}

int32_t ktops_pool_destroy(ktops_pool* pool) {
  if (pool == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  ktops_pool::destroy(pool);
  return KTOPS_OK;
}

int32_t ktops_matmul(ktops_pool* pool, const ktops_matmul_args* args) {
  if (pool == nullptr || args == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_matmul(*args); status != KTOPS_OK)
    return status;
  const PoolLock lock(pool);
  return ktops::matmul(*pool, *args);
}

int32_t ktops_moe_forward(ktops_pool* pool, const ktops_moe_args* args) {
  if (pool == nullptr || args == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = ktops::check_moe(*args); status != KTOPS_OK)
    return status;
  if (args->num_tokens == 0 || args->down.rows == 0)
    return KTOPS_OK;
  const PoolLock lock(pool);
  return ktops::moe_forward(*pool, *args);
}

int32_t ktops_pack(ktops_pool* pool, const ktops_matrix* target, const void* source) {
  if (pool == nullptr || target == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_matrix(*target); status != KTOPS_OK)
    return status;
  if (target->rows == 0)
    return KTOPS_OK;
  if (source == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  const PoolLock lock(pool);
  ktops::pack(*pool, *target, static_cast<const uint8_t*>(source));
  return KTOPS_OK;
}

int32_t ktops_read(ktops_pool* pool, ktops_read_args* args) {
  if (pool == nullptr || args == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_read(*args); status != KTOPS_OK)
    return status;
  if (args->num_rows == 0)
    return KTOPS_OK;
  const PoolLock lock(pool);
  return ktops::read_packed(*pool, *args);
}

int32_t ktops_dequantize(uint32_t type, const void* source, float* target, uint64_t count) {
  const ktops::TypeInfo info = ktops::type_info(type);
  if (info.block_bytes == 0)
    return KTOPS_ERROR_UNKNOWN_TYPE;
  if (count % info.block_size != 0)
    return KTOPS_ERROR_BAD_SHAPE;
  if (count == 0)
    return KTOPS_OK;
  if (source == nullptr || target == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  ktops::dequantize(type, source, target, count);
  return KTOPS_OK;
}

int32_t ktops_dequantize_rows(const ktops_matrix* matrix, uint64_t first_row, uint64_t num_rows,
                              float* target) {
  if (matrix == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_matrix(*matrix); status != KTOPS_OK)
    return status;
  if (!is_row_range(*matrix, first_row, num_rows))
    return KTOPS_ERROR_BAD_SHAPE;
  if (num_rows == 0)
    return KTOPS_OK;
  if (target == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  ktops::dequantize_rows(*matrix, first_row, num_rows, target);
  return KTOPS_OK;
}

} // extern "C"
