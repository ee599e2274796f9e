// Waiting for another thread: spinning for a while, then asleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

namespace ktops {

// Long enough to bridge the gap between two matrices of a layer, short enough to give the core back
// to whoever computes in between.
constexpr uint64_t kSpinNs = 40'000;
// With more threads than CPUs a spinning thread stands in the way of the one it waits for.
constexpr uint64_t kCrowdedSpinNs = 1'000;

inline void futex_wait(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

inline void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// True once done() holds, false when spin_ns have passed first.
template <class Done> bool spin_until(uint64_t spin_ns, const Done& done) {
  if (done())
    return true;
  for (const uint64_t start = now_ns(); now_ns() - start < spin_ns;) {
    for (int i = 0; i < 16; ++i) {
      _mm_pause();
      if (done())
        return true;
    }
  }
  return false;
}

} // namespace ktops
