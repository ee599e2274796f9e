#include "memory.h"

#include <cerrno>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

namespace ktops {

void* map_memory(size_t num_bytes, int32_t* huge_page_errno) {
  *huge_page_errno = 0;
  // The start must be aligned for the first huge page: map more and give the rest back.
  const bool huge = num_bytes >= kHugePageBytes;
  const size_t extra = huge ? kHugePageBytes : 0;
  size_t mapped_bytes;
  if (__builtin_add_overflow(num_bytes, extra, &mapped_bytes))
    return nullptr;
  void* mapped =
      mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    return nullptr;
  if (!huge)
    return mapped;
  auto* start = static_cast<std::byte*>(mapped);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t offset = reinterpret_cast<uintptr_t>(start) % kHugePageBytes;
  const size_t before = offset == 0 ? 0 : kHugePageBytes - offset;
  const size_t kept = (num_bytes + page - 1) / page * page;
  if (before != 0)
    munmap(start, before);
  if (mapped_bytes > before + kept)
    munmap(start + before + kept, mapped_bytes - before - kept);
  if (madvise(start + before, kept, MADV_HUGEPAGE) != 0)
    *huge_page_errno = errno;
  return start + before;
}

void unmap_memory(void* address, size_t num_bytes) {
  if (address != nullptr)
    munmap(address, num_bytes);
}

} // namespace ktops
