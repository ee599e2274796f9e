// Working memory that grows to the largest call and is kept for the next.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktops {

class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least num_bytes, aligned to a page; null when there is not enough memory. What was handed
  // out before is lost.
  std::byte* reserve(size_t num_bytes);

 private:
  void* address_ = nullptr;
  size_t size_ = 0;
};

// Hands out consecutive aligned pieces; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  template <class T> T* take(size_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ = (used_ + count * sizeof(T) + 63) & ~size_t{63};
    return piece;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

} // namespace ktops
