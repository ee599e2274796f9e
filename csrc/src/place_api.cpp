// The C border of what has to do with NUMA nodes.
#include "arguments.h"
#include "blocks.h"
#include "place.h"
#include "pool.h"

namespace {

using ktops::check_matrix;
using ktops::PoolLock;

int32_t check_in_buffer(const ktops_buffer& buffer, const ktops_matrix& matrix) {
  if (const int32_t status = check_matrix(matrix); status != KTOPS_OK)
    return status;
  const auto start = reinterpret_cast<uintptr_t>(buffer.address);
  const auto data = reinterpret_cast<uintptr_t>(matrix.data);
  const uint64_t num_bytes = matrix.rows * matrix.num_experts * ktops::bytes_of_row(matrix);
  const bool is_inside = data >= start && data - start <= buffer.num_bytes &&
                         num_bytes <= buffer.num_bytes - (data - start);
  return is_inside && matrix.rows != 0 ? KTOPS_OK : KTOPS_ERROR_BAD_SHAPE;
}

} // namespace

extern "C" {

int32_t ktops_pool_set_nodes(ktops_pool* pool, const int32_t* nodes, uint32_t num_threads,
                             uint32_t* num_nodes) {
  if (pool == nullptr || nodes == nullptr || num_nodes == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (num_threads != pool->num_threads())
    return KTOPS_ERROR_BAD_SHAPE;
#ifdef KTOPS_NUMA
  const PoolLock lock(pool);
  pool->set_nodes(nodes);
#endif
  *num_nodes = pool->num_nodes();
  return KTOPS_OK;
}

int32_t ktops_place(ktops_pool* pool, const ktops_buffer* buffer, const ktops_matrix* matrix,
                    int32_t* numa_errno) {
  if (pool == nullptr || buffer == nullptr || matrix == nullptr || numa_errno == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_in_buffer(*buffer, *matrix); status != KTOPS_OK)
    return status;
  const PoolLock lock(pool);
  *numa_errno = ktops::place(*pool, *buffer, *matrix);
  return KTOPS_OK;
}

int32_t ktops_hold(const ktops_buffer* buffer, int32_t* numa_errno) {
  if (buffer == nullptr || numa_errno == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  *numa_errno = ktops::hold(*buffer);
  return KTOPS_OK;
}

int32_t ktops_count_placed(ktops_pool* pool, const ktops_buffer* buffer, const ktops_matrix* matrix,
                           uint64_t* wanted, uint64_t* there, int32_t* numa_errno) {
  if (pool == nullptr || buffer == nullptr || matrix == nullptr || wanted == nullptr ||
      there == nullptr || numa_errno == nullptr)
    return KTOPS_ERROR_NULL_POINTER;
  if (const int32_t status = check_in_buffer(*buffer, *matrix); status != KTOPS_OK)
    return status;
  const PoolLock lock(pool);
  *numa_errno = ktops::count_placed(*pool, *buffer, *matrix, wanted, there);
  return KTOPS_OK;
}

} // extern "C"
