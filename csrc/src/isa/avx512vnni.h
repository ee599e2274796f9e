// Sixteen rows with VNNI: one instruction for four products of a lane.
#pragma once

#include "vector_avx512.h"

namespace {

struct Avx512Vnni : Avx512 {
  template <int, int kCount> static void dots(I* sums, const I* w, const int32_t* const* x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 8
      for (int c = 0; c < kCount; ++c)
        __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums[c]) : "v"(w[i]), "m"(x[c][i]));
  }
};

} // namespace
