// AVX-512 with bfloat16 dot products (Zen 4 2022) for many tokens; few are served as by VNNI.
#include "avx512vnni.h"
#include "gemm_kernels.h"
#include "kernels.h"

namespace {

// A block of tokens times two panels: at once, or where the sums would not fit in the registers one
// after the other. A step of two columns is a load of weights for each panel and an instruction for
// each (token, panel), which takes its token's two columns from memory.
struct Bf16Dots {
  static constexpr uint32_t kMinTokens = 24;
  static constexpr uint32_t kBlocks = 1;

  static void begin() {}
  static void end() {}

  template <uint32_t, int kPanels, class Between>
  static void run(const uint8_t* tokens, size_t, uint32_t num_tokens, const uint8_t* weights,
                  size_t panel_bytes, uint32_t num_tiles, float* sums, bool is_first,
                  Between& between) {
    const Args args{tokens, weights, panel_bytes, num_tiles, sums, is_first};
    kByTokens<kPanels>[num_tokens - 1](args);
    for (uint32_t tile = 0; tile < num_tiles; ++tile)
      between();
  }

 private:
  static constexpr int kMostSums = 24;
  struct Args {
    const uint8_t *tokens, *weights;
    size_t panel_bytes;
    uint32_t num_tiles;
    float* sums;
    bool is_first;
  };

  template <int kTokens, int kPanels> static void multiply(const Args& args) {
    if constexpr (kTokens * kPanels <= kMostSums) {
      multiply_at_once<kTokens, kPanels>(args);
    } else {
      multiply_at_once<kTokens, 1>(args);
      multiply_at_once<kTokens, 1>({args.tokens, args.weights + args.panel_bytes, args.panel_bytes,
                                    args.num_tiles, args.sums + kTileSums, args.is_first});
    }
  }

  template <int kTokens, int kPanels> static void multiply_at_once(const Args& args) {
    __m512 sums[kPanels][kTokens];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        sums[p][t] = args.is_first ? _mm512_setzero_ps()
                                   : _mm512_load_ps(args.sums + p * kTileSums + t * kPanelRows);
    const uint8_t *tokens = args.tokens, *weights = args.weights;
    for (uint32_t tile = 0; tile < args.num_tiles; ++tile, tokens += kBf16TileBytes - 64)
      for (uint32_t pair = 0; pair < 16; ++pair, tokens += 4, weights += 64) {
        __m512i w[kPanels];
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; ++p)
          w[p] = _mm512_load_si512(weights + static_cast<size_t>(p) * args.panel_bytes);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t)
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p)
            __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
                    : "+v"(sums[p][t])
                    : "v"(w[p]), "m"(*reinterpret_cast<const Pair*>(tokens + 64 * t)));
      }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        _mm512_store_ps(args.sums + p * kTileSums + t * kPanelRows, sums[p][t]);
  }
  struct [[gnu::may_alias]] Pair {
    uint32_t bits;
  };

  template <int kPanels>
  static constexpr void (*kByTokens[kBlockTokens])(const Args&) = {
      multiply<1, kPanels>,  multiply<2, kPanels>,  multiply<3, kPanels>,  multiply<4, kPanels>,
      multiply<5, kPanels>,  multiply<6, kPanels>,  multiply<7, kPanels>,  multiply<8, kPanels>,
      multiply<9, kPanels>,  multiply<10, kPanels>, multiply<11, kPanels>, multiply<12, kPanels>,
      multiply<13, kPanels>, multiply<14, kPanels>, multiply<15, kPanels>, multiply<16, kPanels>};
};

} // namespace

constexpr ktops::KernelTable ktops::kAvx512Bf16Kernels =
    with_gemm<Bf16Dots>(make_kernel_table<Avx512Vnni>("avx512bf16"));
