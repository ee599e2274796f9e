#include "scratch.h"

#include "memory.h"

namespace ktops {

Scratch::~Scratch() { unmap_memory(address_, size_); }

std::byte* Scratch::reserve(size_t num_bytes) {
  if (num_bytes > size_) {
    unmap_memory(address_, size_);
    size_ = 0;
    int32_t huge_page_errno;
    const size_t rounded = (num_bytes + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
    address_ = rounded < num_bytes ? nullptr : map_memory(rounded, &huge_page_errno);
    if (address_ == nullptr)
      return nullptr;
    size_ = rounded;
  }
  return static_cast<std::byte*>(address_);
}

} // namespace ktops
