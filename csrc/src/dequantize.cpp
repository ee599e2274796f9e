// Plain conversion of blocks to float32, independent of the kernels.
#include "dequantize.h"

#include <cstring>

#include "blocks.h"
#include "half.h"
#include "layout.h"

namespace ktops {
namespace {

void dequantize_block(const BlockQ4_0& block, float* out) {
  const float d = half_to_float(block.d);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block.qs[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((block.qs[i] >> 4) - 8);
  }
}

void dequantize_block(const BlockQ5_0& block, float* out) {
  const float d = half_to_float(block.d);
  uint32_t high;
  memcpy(&high, block.qh, sizeof high);
  for (int i = 0; i < 16; ++i) {
    const int low_bit = (high >> i & 1) << 4, high_bit = (high >> (i + 16) & 1) << 4;
    out[i] = d * static_cast<float>(((block.qs[i] & 15) | low_bit) - 16);
    out[i + 16] = d * static_cast<float>(((block.qs[i] >> 4) | high_bit) - 16);
  }
}

void dequantize_block(const BlockQ8_0& block, float* out) {
  const float d = half_to_float(block.d);
  for (int i = 0; i < 32; ++i)
    out[i] = d * static_cast<float>(block.qs[i]);
}

struct ScaleAndMin {
  float scale, min;
};

template <class Block> ScaleAndMin scale_and_min(const Block& block, int j) {
  const uint8_t* s = block.scales;
  int scale, min;
  if (j < 4) {
    scale = s[j] & 63;
    min = s[j + 4] & 63;
  } else {
    scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
  }
  return {half_to_float(block.d) * static_cast<float>(scale),
          half_to_float(block.dmin) * static_cast<float>(min)};
}

void dequantize_block(const BlockQ4_K& block, float* out) {
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_and_min(block, j);
    for (int i = 0; i < 32; ++i) {
      const int q = block.qs[32 * (j / 2) + i] >> (4 * (j % 2)) & 15;
      out[32 * j + i] = scale * static_cast<float>(q) - min;
    }
  }
}

void dequantize_block(const BlockQ5_K& block, float* out) {
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = scale_and_min(block, j);
    for (int i = 0; i < 32; ++i) {
      const int low = block.qs[32 * (j / 2) + i] >> (4 * (j % 2)) & 15;
      const int q = low | (block.qh[i] >> j & 1) << 4;
      out[32 * j + i] = scale * static_cast<float>(q) - min;
    }
  }
}

void dequantize_block(const BlockQ6_K& block, float* out) {
  const float d = half_to_float(block.d);
  for (int j = 0; j < 8; ++j) {
    const int half = j / 4, part = j % 4;
    for (int i = 0; i < 32; ++i) {
      const int low = block.ql[64 * half + 32 * (part & 1) + i] >> (4 * (part >> 1)) & 15;
      const int q = (low | (block.qh[32 * half + i] >> (2 * part) & 3) << 4) - 32;
      const float scale = d * static_cast<float>(block.scales[2 * j + i / 16]);
      out[32 * j + i] = scale * static_cast<float>(q);
    }
  }
}

// Blocks may start at any byte, so each is copied out first.
template <class Block>
void dequantize_blocks(const void* source, float* target, uint64_t count, uint32_t block_size) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  for (uint64_t i = 0; i < count / block_size; ++i) {
    Block block;
    memcpy(&block, bytes + i * sizeof(Block), sizeof block);
    dequantize_block(block, target + i * block_size);
  }
}

template <class Convert>
void convert_halves(const void* source, float* target, uint64_t count, Convert convert) {
  const auto* bytes = static_cast<const uint8_t*>(source);
  for (uint64_t i = 0; i < count; ++i) {
    uint16_t half;
    memcpy(&half, bytes + 2 * i, sizeof half);
    target[i] = convert(half);
  }
}

// Block `index` of a row of a packed panel as the file has it.
void unpack_block(const PackedType& type, const uint8_t* panel, uint32_t row, size_t index,
                  size_t num_blocks, uint8_t* block) {
  const PackedPlace place = packed_place(type, index, num_blocks);
  for (uint32_t word = 0; word < type.num_words; ++word)
    memcpy(block + type.words_at + 4 * word, panel + place.lines + 4 * (word * kPanelRows + row),
           4);
  if (type.num_halves != 0)
    memcpy(block + type.half_at, panel + place.halves + 2 * row, 2);
}

float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

} // namespace

void dequantize(uint32_t type, const void* source, float* target, uint64_t count) {
  const uint32_t block_size = type_info(type).block_size;
  switch (type) {
  case KTOPS_TYPE_F32:
    memcpy(target, source, count * sizeof(float));
    return;
  case KTOPS_TYPE_F16:
    return convert_halves(source, target, count, half_to_float);
  case KTOPS_TYPE_BF16:
    return convert_halves(source, target, count, bf16_to_float);
  case KTOPS_TYPE_Q4_0:
    return dequantize_blocks<BlockQ4_0>(source, target, count, block_size);
  case KTOPS_TYPE_Q5_0:
    return dequantize_blocks<BlockQ5_0>(source, target, count, block_size);
  case KTOPS_TYPE_Q8_0:
    return dequantize_blocks<BlockQ8_0>(source, target, count, block_size);
  case KTOPS_TYPE_Q4_K:
    return dequantize_blocks<BlockQ4_K>(source, target, count, block_size);
  case KTOPS_TYPE_Q5_K:
    return dequantize_blocks<BlockQ5_K>(source, target, count, block_size);
  case KTOPS_TYPE_Q6_K:
    return dequantize_blocks<BlockQ6_K>(source, target, count, block_size);
  }
}

void dequantize_rows(const ktops_matrix& matrix, uint64_t first_row, uint64_t num_rows,
                     float* target) {
  const TypeInfo info = type_info(matrix.type);
  const PackedType packed = packed_type(matrix.type);
  const size_t num_blocks = matrix.cols / info.block_size;
  const size_t row_bytes = bytes_of_row(matrix);
  const uint64_t panel_rows = matrix.rows / kPanelRows * kPanelRows;
  const auto* data = static_cast<const uint8_t*>(matrix.data);
  for (uint64_t i = first_row; i < first_row + num_rows; ++i, target += matrix.cols) {
    const uint64_t row = i % matrix.rows;
    if (matrix.layout == KTOPS_LAYOUT_GGUF || row >= panel_rows) {
      dequantize(matrix.type, data + i * row_bytes, target, matrix.cols);
      continue;
    }
    const uint32_t lane = row % kPanelRows;
    for (size_t b = 0; b < num_blocks; ++b) {
      uint8_t block[256];
      static_assert(sizeof(BlockQ6_K) <= sizeof block);
      unpack_block(packed, data + (i - lane) * row_bytes, lane, b, num_blocks, block);
      dequantize(matrix.type, block, target + b * info.block_size, info.block_size);
    }
  }
}

} // namespace ktops
