// Attention over the cache: softmax of the products with queries, and the sum of latents it weighs.
//
// A context is cut into blocks, so that threads share a long one. Where the cuts are depends on its
// length alone, and results of blocks are joined in their order: the number of threads changes no
// bit.
#pragma once

#include "ktops.h"
#include "pool.h"
#include "scratch.h"

namespace ktops {

struct ContextShape {
  size_t num_heads, rank, width; // width: of a cache slot
  float scale;
};

class ContextAttention {
 public:
  ContextAttention() = default;
  ContextAttention(Carver& carver, const ContextShape& shape, const ktops_context* contexts,
                   size_t num_tokens);
  // Cuts the contexts; to be called before the functions below.
  void cut();

  // queries: [num_tokens, num_heads], each query_floats() apart, 64-byte aligned and zero beyond
  // the width.
  size_t query_floats() const { return (shape_.width + 15) / 16 * 16; }
  size_t num_pieces() const { return num_pieces_; }
  void attend(const KernelTable& kernels, size_t piece, const float* queries,
              const float* cache) const;
  // After all pieces: the sum of latents of one head, [rank].
  void join(const KernelTable& kernels, size_t token, size_t head, float* latent) const;

 private:
  // Some rows of a token's context for some heads.
  struct Piece {
    size_t token, first_head, first_row, num_rows;
    float* scores; // [heads of a piece, score_stride]; in the end the weights, not yet divided
  };

  size_t num_blocks(size_t token) const;
  size_t first_piece(size_t token, size_t head) const;
  size_t score_stride(size_t num_rows) const { return (num_rows + 15) / 16 * 16; }
  template <class Use> void for_each_run(const Piece& piece, const Use& use) const;
  void score(const KernelTable& kernels, const Piece& piece, const float* queries,
             const float* cache) const;
  void weigh(const KernelTable& kernels, const Piece& piece, float* peaks, float* totals) const;

  ContextShape shape_{};
  const ktops_context* contexts_ = nullptr;
  size_t num_tokens_ = 0, num_pieces_ = 0, num_groups_ = 0, latent_floats_ = 0;
  Piece* pieces_ = nullptr;
  size_t* first_pieces_ = nullptr; // [num_tokens]
  float* scores_ = nullptr;
  float* peaks_ = nullptr;   // [num_pieces, heads of a piece]: largest score
  float* totals_ = nullptr;  // the same: sum of weights
  float* latents_ = nullptr; // [num_pieces, heads of a piece, latent_floats]: weighted sums
};

} // namespace ktops
