#include "context.h"

#include <algorithm>
#include <cstring>

#include "tiling.h"

namespace ktops {
namespace {

// Heads that a piece takes: they share its reads of the cache.
constexpr size_t kPieceHeads = 16;
// A block is worth handing to another thread, and a context has so few that their partial results
// stay small beside it.
constexpr size_t kSmallestBlock = 32, kMostBlocks = 32;
// Rows of the cache that stay in the second-level cache while all their columns are added up.
constexpr size_t kNearRows = 64;

size_t block_rows(size_t num_rows) {
  return std::max(kSmallestBlock, divide_up(divide_up(num_rows, kMostBlocks), 16) * 16);
}

} // namespace

ContextAttention::ContextAttention(Carver& carver, const ContextShape& shape,
                                   const ktops_context* contexts, size_t num_tokens)
    : shape_(shape), contexts_(contexts), num_tokens_(num_tokens),
      num_groups_(divide_up(shape.num_heads, kPieceHeads)),
      latent_floats_((shape.rank + 15) / 16 * 16) {
  size_t num_scores = 0;
  for (size_t t = 0; t < num_tokens; ++t) {
    num_pieces_ += num_groups_ * num_blocks(t);
    num_scores += num_groups_ * kPieceHeads * (contexts[t].num_slots + 16 * num_blocks(t));
  }
  pieces_ = carver.take<Piece>(num_pieces_);
  first_pieces_ = carver.take<size_t>(num_tokens);
  scores_ = carver.take<float>(num_scores);
  peaks_ = carver.take<float>(num_pieces_ * kPieceHeads);
  totals_ = carver.take<float>(num_pieces_ * kPieceHeads);
  latents_ = carver.take<float>(num_pieces_ * kPieceHeads * latent_floats_);
}

size_t ContextAttention::num_blocks(size_t token) const {
  const size_t num_rows = contexts_[token].num_slots;
  return divide_up(num_rows, block_rows(num_rows));
}

// Blocks of the same heads follow one another.
size_t ContextAttention::first_piece(size_t token, size_t head) const {
  return first_pieces_[token] + head / kPieceHeads * num_blocks(token);
}

void ContextAttention::cut() {
  Piece* piece = pieces_;
  float* scores = scores_;
  for (size_t t = 0; t < num_tokens_; ++t) {
    const size_t num_rows = contexts_[t].num_slots, step = block_rows(num_rows);
    first_pieces_[t] = static_cast<size_t>(piece - pieces_);
    for (size_t group = 0; group < num_groups_; ++group)
      for (size_t row = 0; row < num_rows; row += step) {
        const size_t count = std::min(step, num_rows - row);
        *piece++ = {t, group * kPieceHeads, row, count, scores};
        scores += kPieceHeads * score_stride(count);
      }
  }
}

// use(first, slot, count) for each run of consecutive slots: rows [first, first + count) of the
// piece.
template <class Use> void ContextAttention::for_each_run(const Piece& piece, const Use& use) const {
  const ktops_context& context = contexts_[piece.token];
  if (context.slots == nullptr)
    return use(size_t{0}, static_cast<size_t>(context.first_slot) + piece.first_row,
               piece.num_rows);
  const int64_t* slots = context.slots + piece.first_row;
  for (size_t first = 0, last; first < piece.num_rows; first = last) {
    for (last = first + 1; last < piece.num_rows && slots[last] == slots[last - 1] + 1;)
      ++last;
    use(first, static_cast<size_t>(slots[first]), last - first);
  }
}

// Products of queries and keys: the cache is a matrix of weights, the heads are its tokens.
void ContextAttention::score(const KernelTable& kernels, const Piece& piece, const float* queries,
                             const float* cache) const {
  alignas(64) float out[kPieceHeads * kPanelRows];
  const void* records[kPieceHeads];
  const size_t num_heads = std::min(kPieceHeads, shape_.num_heads - piece.first_head);
  const size_t stride = score_stride(piece.num_rows);
  for (size_t h = 0; h < num_heads; ++h)
    records[h] = queries + (piece.token * shape_.num_heads + piece.first_head + h) * query_floats();
  for_each_run(piece, [&](size_t first, size_t slot, size_t count) {
    for (size_t done = 0; done < count; done += kPanelRows) {
      const auto num_rows = static_cast<uint32_t>(std::min<size_t>(kPanelRows, count - done));
      const auto* rows = reinterpret_cast<const uint8_t*>(cache + (slot + done) * shape_.width);
      const size_t row_bytes = shape_.width * sizeof(float);
      kernels.row_panel[KTOPS_TYPE_F32]({rows, row_bytes, shape_.width, num_rows,
                                         static_cast<uint32_t>(num_heads),
                                         rows + num_rows * row_bytes, records, out});
      for (size_t h = 0; h < num_heads; ++h)
        memcpy(piece.scores + h * stride + first + done, out + h * kPanelRows,
               num_rows * sizeof(float));
    }
  });
}

// Scores to weights: e^(scale * (score - peak)).
void ContextAttention::weigh(const KernelTable& kernels, const Piece& piece, float* peaks,
                             float* totals) const {
  const size_t num_heads = std::min(kPieceHeads, shape_.num_heads - piece.first_head);
  for (size_t h = 0; h < num_heads; ++h) {
    float* scores = piece.scores + h * score_stride(piece.num_rows);
    float peak = scores[0], total = 0;
    for (size_t r = 1; r < piece.num_rows; ++r)
      peak = std::max(peak, scores[r]);
    for (size_t r = 0; r < piece.num_rows; ++r)
      scores[r] = shape_.scale * (scores[r] - peak);
    kernels.exponentials(scores, scores, piece.num_rows);
    for (size_t r = 0; r < piece.num_rows; ++r)
      total += scores[r];
    peaks[h] = peak;
    totals[h] = total;
  }
}

void ContextAttention::attend(const KernelTable& kernels, size_t index, const float* queries,
                              const float* cache) const {
  const Piece& piece = pieces_[index];
  const size_t num_heads = std::min(kPieceHeads, shape_.num_heads - piece.first_head);
  float* latents = latents_ + index * kPieceHeads * latent_floats_;
  score(kernels, piece, queries, cache);
  weigh(kernels, piece, peaks_ + index * kPieceHeads, totals_ + index * kPieceHeads);
  std::fill_n(latents, num_heads * latent_floats_, 0.0f);
  for_each_run(piece, [&](size_t first, size_t slot, size_t count) {
    for (size_t done = 0; done < count; done += kNearRows)
      kernels.add_weighted_rows({piece.scores + first + done, score_stride(piece.num_rows),
                                 cache + (slot + done) * shape_.width, shape_.width, latents,
                                 latent_floats_, num_heads, std::min(kNearRows, count - done),
                                 shape_.rank});
  });
}

void ContextAttention::join(const KernelTable& kernels, size_t token, size_t head,
                            float* latent) const {
  const size_t first = first_piece(token, head), count = num_blocks(token), h = head % kPieceHeads;
  float shares[kMostBlocks] = {};
  float peak = peaks_[first * kPieceHeads + h], total = 0;
  for (size_t b = 1; b < count; ++b)
    peak = std::max(peak, peaks_[(first + b) * kPieceHeads + h]);
  for (size_t b = 0; b < count; ++b)
    shares[b] = shape_.scale * (peaks_[(first + b) * kPieceHeads + h] - peak);
  kernels.exponentials(shares, shares, count);
  for (size_t b = 0; b < count; ++b)
    total += shares[b] * totals_[(first + b) * kPieceHeads + h];
  std::fill_n(latent, shape_.rank, 0.0f);
  for (size_t b = 0; b < count; ++b) {
    const float* part = latents_ + ((first + b) * kPieceHeads + h) * latent_floats_;
    const float share = shares[b] / total;
    for (size_t i = 0; i < shape_.rank; ++i)
      latent[i] += share * part[i];
  }
}

} // namespace ktops
