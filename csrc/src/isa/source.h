// Where the words of a block come from: rows of the file's layout, or lines of the packed one.
//
// Both answer in the file's terms: load4(at), load8(at), word(at) and half(at) give the words or
// the half that stand `at` bytes into the block of each row. fetch(group) is called before each
// group of 32 columns and calls later bytes into the cache.
#pragma once

#include "panel.h"

namespace {

// The group and the part of a panel that a block begins with.
struct Place {
  size_t group;
  uint32_t part;
};

// Calls the rows behind this part into the second-level cache, piece by piece, while it is
// computed: the hardware does not foresee so many rows side by side.
template <class V, size_t kPieceBytes> class NextPanel {
 public:
  NextPanel(const PanelArgs& args, uint32_t part)
      : at_(part + 1 < kParts<V> && args.num_rows > (part + 1) * V::kLanes
                ? args.weights + (part + 1) * V::kLanes * args.row_bytes
                : args.next) {}

  // Called for each piece of kPieceBytes a row.
  KTOPS_INLINE void fetch() {
    constexpr size_t kLines = (V::kLanes * kPieceBytes + 63) / 64;
    if constexpr (V::kLanes > 1) {
#pragma GCC unroll 16
      for (size_t line = 0; line < kLines; ++line)
        __builtin_prefetch(at_ + 64 * line, 0, 2);
      at_ += 64 * kLines;
      // Keeps the loads of a group behind its own few lines; bunched up they hold up one another.
      __asm__ volatile("" ::: "memory");
    }
  }

 private:
  const uint8_t* at_;
};

template <class V, class Next> class RowSource {
 public:
  RowSource(Rows rows, size_t offset, Next& next) : rows_(rows), offset_(offset), next_(next) {}

  KTOPS_INLINE void load4(size_t at, typename V::I* out) const {
    V::load4(rows_, offset_ + at, out);
  }
  KTOPS_INLINE void load8(size_t at, typename V::I* out) const {
    V::load8(rows_, offset_ + at, out);
  }
  KTOPS_INLINE typename V::I word(size_t at) const { return V::word_at(rows_, offset_ + at); }
  KTOPS_INLINE typename V::F half(size_t at) const { return V::half_at(rows_, offset_ + at); }
  KTOPS_INLINE void fetch(int) const { next_.fetch(); }

 private:
  const Rows rows_;
  const size_t offset_;
  Next& next_;
};

// A position in a packed panel, then in what the caller reads next.
class StreamAhead {
 public:
  explicit StreamAhead(const PanelArgs& args)
      : panel_(args.weights), next_(args.next), panel_bytes_(kPanelRows * args.row_bytes) {}

  KTOPS_INLINE const uint8_t* at(size_t position) const {
    return position < panel_bytes_ ? panel_ + position : next_ + (position - panel_bytes_);
  }

 private:
  const uint8_t *const panel_, *const next_;
  const size_t panel_bytes_;
};

// What a packed block calls while it is computed: as many bytes, a little further on. They go to
// the second-level cache only: the first level has too few places for lines on their way.
template <size_t kGroupBytes> class BytesAhead {
 public:
  BytesAhead(const StreamAhead& stream, const ktops::PackedPlace&, size_t position)
      : data_(stream.at(position + kDistance)) {}

  KTOPS_INLINE void fetch(int group) const {
#pragma GCC unroll 16
    for (size_t line = 0; line < (kGroupBytes + 63) / 64; ++line)
      __builtin_prefetch(data_ + static_cast<size_t>(group) * kGroupBytes + 64 * line, 0, 2);
  }

 private:
  static constexpr size_t kDistance = 8192;

  const uint8_t* const data_;
};

// The same for a type that does not use its lines in the order in which they lie: those of the
// block one chunk further on, in the order of kOrder, its line of halves after the others. Called
// as they lie, the first that a block waits for would be among the last on their way.
template <class Order> class LinesAhead {
 public:
  LinesAhead(const StreamAhead& stream, const ktops::PackedPlace& place, size_t)
      : lines_(stream.at(place.lines + Order::kChunkBytes)),
        halves_(stream.at(place.halves + Order::kChunkBytes)) {}

  KTOPS_INLINE void fetch(int group) const {
    constexpr size_t kLines = sizeof Order::kLines, kEach = (kLines + 7) / 8;
#pragma GCC unroll 16
    for (size_t i = 0; i < kEach; ++i) {
      const size_t place = static_cast<size_t>(group) * kEach + i;
      if (place >= kLines)
        break;
      const size_t line = Order::kLines[place];
      __builtin_prefetch(line == kLines - 1 ? halves_ : lines_ + 64 * line, 0, 2);
    }
  }

 private:
  const uint8_t *const lines_, *const halves_;
};

template <class V, size_t kWordsAt, class Ahead> class PackedSource {
 public:
  PackedSource(const uint8_t* lines, const uint8_t* halves, const Ahead& ahead)
      : lines_(lines), halves_(halves), ahead_(ahead) {}

  KTOPS_INLINE void load4(size_t at, typename V::I* out) const { load<4>(at, out); }
  KTOPS_INLINE void load8(size_t at, typename V::I* out) const { load<8>(at, out); }
  KTOPS_INLINE typename V::I word(size_t at) const {
    return V::load_words(lines_ + (at - kWordsAt) * kPanelRows);
  }
  KTOPS_INLINE typename V::F half(size_t) const { return V::load_halves(halves_); }
  KTOPS_INLINE void fetch(int group) const {
    if constexpr (V::kLanes > 1) {
      ahead_.fetch(group);
      __asm__ volatile("" ::: "memory"); // keeps them spread over the groups
    }
  }

 private:
  template <size_t kCount> KTOPS_INLINE void load(size_t at, typename V::I* out) const {
#pragma GCC unroll 8
    for (size_t i = 0; i < kCount; ++i)
      out[i] = word(at + 4 * i);
  }

  const uint8_t *const lines_, *const halves_;
  const Ahead& ahead_;
};

} // namespace
