// AMX-BF16 (Sapphire Rapids 2023) for many tokens; few are served as by AVX-512 VNNI.
#include "avx512vnni.h"
#include "gemm_kernels.h"
#include "kernels.h"
#ifdef KTOPS_EMULATE_AMX
#include "../../tests/emulated_tiles.h"
#else
#include "tiles_amx.h"
#endif

namespace {

// Two blocks of tokens times two panels: each of four tiles loaded serves two products. Tiles 0 to
// 3 hold the sums, 4 and 5 the tokens, 6 and 7 the weights.
struct Amx {
  static constexpr uint32_t kMinTokens = 10;
  static constexpr uint32_t kBlocks = 2;

  static void begin() { Tiles::configure(); }
  static void end() { Tiles::release(); }

  template <uint32_t kTokenBlocks, int kPanels, class Between>
  KTOPS_INLINE static void run(const uint8_t* tokens, size_t block_bytes, uint32_t,
                               const uint8_t* weights, size_t panel_bytes, uint32_t num_tiles,
                               float* sums, bool is_first, Between& between) {
    if (is_first)
      clear<kTokenBlocks, kPanels>();
    else
      load<kTokenBlocks, kPanels>(sums);
    for (uint32_t i = 0; i < num_tiles; ++i, tokens += kBf16TileBytes, weights += kBf16TileBytes) {
      Tiles::load<6>(weights);
      if constexpr (kPanels == 2)
        Tiles::load<7>(weights + panel_bytes);
      Tiles::load<4>(tokens);
      if constexpr (kTokenBlocks == 2)
        Tiles::load<5>(tokens + block_bytes);
      Tiles::dot<0, 4, 6>();
      if constexpr (kPanels == 2)
        Tiles::dot<1, 4, 7>();
      if constexpr (kTokenBlocks == 2) {
        Tiles::dot<2, 5, 6>();
        if constexpr (kPanels == 2)
          Tiles::dot<3, 5, 7>();
      }
      between();
    }
    store<kTokenBlocks, kPanels>(sums);
  }

 private:
  template <int kTokenBlocks, int kPanels> KTOPS_INLINE static void clear() {
    Tiles::zero<0>();
    if constexpr (kPanels == 2)
      Tiles::zero<1>();
    if constexpr (kTokenBlocks == 2) {
      Tiles::zero<2>();
      if constexpr (kPanels == 2)
        Tiles::zero<3>();
    }
  }
  template <int kTokenBlocks, int kPanels> KTOPS_INLINE static void load(const float* sums) {
    Tiles::load<0>(sums);
    if constexpr (kPanels == 2)
      Tiles::load<1>(sums + kTileSums);
    if constexpr (kTokenBlocks == 2) {
      Tiles::load<2>(sums + 2 * kTileSums);
      if constexpr (kPanels == 2)
        Tiles::load<3>(sums + 3 * kTileSums);
    }
  }
  template <int kTokenBlocks, int kPanels> KTOPS_INLINE static void store(float* sums) {
    Tiles::store<0>(sums);
    if constexpr (kPanels == 2)
      Tiles::store<1>(sums + kTileSums);
    if constexpr (kTokenBlocks == 2) {
      Tiles::store<2>(sums + 2 * kTileSums);
      if constexpr (kPanels == 2)
        Tiles::store<3>(sums + 3 * kTileSums);
    }
  }
};

} // namespace

constexpr ktops::KernelTable ktops::kAmxKernels =
    with_gemm<Amx>(make_kernel_table<Avx512Vnni>("amx"));
