// The tile registers of AMX in plain C++, after Intel's description of the instructions, so that
// any machine with AVX-512 runs the kernels that are built on them. TDPBF16PS adds up the even and
// the odd products apart, rounds each step to nearest even, takes subnormal numbers for zero, and
// flushes subnormal results to zero.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Tiles {
  static void configure() { state() = {true, {}}; }
  static void release() { state() = {}; }
  template <int kTile> static void zero() { memset(tile<kTile>(), 0, kBytes); }
  template <int kTile> static void load(const void* from) { memcpy(tile<kTile>(), from, kBytes); }
  template <int kTile> static void store(void* to) { memcpy(to, tile<kTile>(), kBytes); }
  template <int kSum, int kLeft, int kRight> static void dot() {
    float sums[16][16];
    uint32_t left[16][16], right[16][16];
    memcpy(sums, tile<kSum>(), kBytes);
    memcpy(left, tile<kLeft>(), kBytes);
    memcpy(right, tile<kRight>(), kBytes);
    for (int m = 0; m < 16; ++m) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 16; ++n) {
          even[n] = flushed(std::fma(low(left[m][k]), low(right[k][n]), even[n]));
          odd[n] = flushed(std::fma(high(left[m][k]), high(right[k][n]), odd[n]));
        }
      for (int n = 0; n < 16; ++n)
        sums[m][n] = flushed(flushed(sums[m][n]) + flushed(even[n] + odd[n]));
    }
    memcpy(tile<kSum>(), sums, kBytes);
  }

 private:
  static constexpr size_t kBytes = 1024;
  struct State {
    bool is_configured = false;
    uint8_t tiles[8][kBytes] = {};
  };

  static State& state() {
    static thread_local State own;
    return own;
  }
  template <int kTile> static uint8_t* tile() {
    static_assert(kTile >= 0 && kTile < 8);
    if (!state().is_configured) // the instruction would fault
      __builtin_trap();
    return state().tiles[kTile];
  }
  static float flushed(float value) {
    return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
  }
  static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return flushed(value);
  }
  static float low(uint32_t pair) { return from_bits(pair << 16); }
  static float high(uint32_t pair) { return from_bits(pair & 0xFFFF0000u); }
};

} // namespace
