// The tile registers of AMX, numbered at compile time, which the compiler's own functions, macros
// in some of them, do not allow.
#pragma once

#include <cstddef>
#include <cstdint>

#include "panel.h"

namespace {

struct Tiles {
  // All eight tiles as 16 lines of 64 bytes.
  static void configure() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t line_bytes[16];
      uint8_t num_lines[16];
    } config = {};
    static_assert(sizeof config == 64);
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.line_bytes[i] = 64;
      config.num_lines[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { __asm__ volatile("tilerelease"); }
  template <int kTile> KTOPS_INLINE static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile> KTOPS_INLINE static void load(const void* from) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(64L), "i"(kTile)
                     : "memory");
  }
  template <int kTile> KTOPS_INLINE static void store(void* to) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(64L), "i"(kTile) : "memory");
  }
  // sum += left · right; left holds 16 rows of pairs, right 16 pairs of rows.
  template <int kSum, int kLeft, int kRight> KTOPS_INLINE static void dot() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(kSum), "i"(kLeft), "i"(kRight));
  }
};

} // namespace
