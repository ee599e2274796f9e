"""Stretches of columns of packed weights, as the tensor cores want them.

A word of a packed matrix (csrc/README.md, "Layouts") holds four bytes of one row: four quants, or
eight in two nibbles each. Taken apart byte by byte and nibble by nibble they are columns far from
each other, so activations are put in that order (`reorder`), once, instead of weights for every
tile. In a stretch come first the columns of all words' byte 0, its low nibbles before its high
ones, then those of byte 1 and so on: each of these *runs* is one column a word.

Tiles are [words, rows]: the words of 16 rows stand side by side in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.units import Q4_0, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0


@dataclass(frozen=True)
class Stretch:
    """Columns in the file's order: [groups, nibbles, words of a group, 4 bytes]."""

    groups: int
    nibbles: int
    words: int  # of a group

    @property
    def cols(self) -> int:
        return self.groups * self.nibbles * self.words * 4


STRETCHES = {
    QuantType.Q4_K: Stretch(4, 2, 8),
    QuantType.Q5_K: Stretch(4, 2, 8),
    QuantType.Q6_K: Stretch(2, 2, 16),
    QuantType.Q8_0: Stretch(1, 1, 32),
    QuantType.Q5_0: Stretch(4, 2, 4),
    QuantType.Q4_0: Stretch(4, 2, 4),
}


def has_stretches(type: QuantType, cols: int) -> bool:
    """Whether rows of this type and width are cut into stretches."""
    return type in STRETCHES and cols % STRETCHES[type].cols == 0


def reorder(x: torch.Tensor, type: QuantType) -> torch.Tensor:
    """Columns of x: [tokens, cols] in the order of the stretches of `type`."""
    cut = STRETCHES[type]
    parts = x.view(x.shape[0], -1, cut.groups, cut.nibbles, cut.words, 4)
    return parts.permute(0, 1, 5, 3, 2, 4).reshape(x.shape)


@triton.jit
def load_stretch(matrix, rows, stretch, TYPE: tl.constexpr, COLS: tl.constexpr):
    """Stretch number `stretch` of rows [R]: words with the low bits and words with the higher ones
    of the quants, then scale and offset of even and of odd runs: all [words, R], a weight being
    quant * scale - offset. matrix: int32 pointer."""
    if TYPE == Q4_K:
        return _q4_k(matrix, rows, stretch, COLS, 36, False)
    elif TYPE == Q5_K:
        return _q4_k(matrix, rows, stretch, COLS, 44, True)
    elif TYPE == Q6_K:
        return _q6_k(matrix, rows, stretch, COLS)
    elif TYPE == Q8_0:
        return _q8_0(matrix, rows, stretch, COLS)
    elif TYPE == Q5_0:
        return _q4_0(matrix, rows, stretch, COLS, 22, True)
    else:
        tl.static_assert(TYPE == Q4_0)
        return _q4_0(matrix, rows, stretch, COLS, 18, False)


@triton.jit
def run_weights(tile, BYTE: tl.constexpr, NIBBLE: tl.constexpr, TYPE: tl.constexpr):
    """One run: [words, R] bfloat16."""
    low, high, scale0, offset0, scale1, offset1 = tile
    quants = (low >> (8 * BYTE + 4 * NIBBLE)) & (255 if TYPE == Q8_0 else 15)
    if TYPE == Q6_K:
        quants |= ((high >> (8 * BYTE + 4 * NIBBLE)) & 3) << 4
    elif TYPE == Q5_K:
        quants |= ((high >> (8 * BYTE + NIBBLE)) & 1) << 4
    elif TYPE == Q5_0:
        quants |= ((high >> (16 * NIBBLE + BYTE)) & 1) << 4
    if NIBBLE == 0:
        return (quants.to(tl.float32) * scale0 - offset0).to(tl.bfloat16)
    else:
        return (quants.to(tl.float32) * scale1 - offset1).to(tl.bfloat16)


@triton.jit
def _panels(matrix, rows, PANEL_WORDS: tl.constexpr):
    """Pointers to each row's word 0 of the first block: [R]."""
    return matrix + (rows // 16) * PANEL_WORDS + rows % 16


@triton.jit
def _half_panels(matrix, rows, PANEL_WORDS: tl.constexpr):
    """The same for halves, as float16."""
    halves = matrix.to(tl.pointer_type(tl.float16), bitcast=True)
    return halves + (rows // 16) * (2 * PANEL_WORDS) + rows % 16


@triton.jit
def _spread(values, TIMES: tl.constexpr):
    """[n, R] to [n * TIMES, R], each value TIMES times."""
    n: tl.constexpr = values.shape[0]
    rows: tl.constexpr = values.shape[1]
    return tl.reshape(tl.broadcast_to(values[:, None, :], [n, TIMES, rows]), [n * TIMES, rows])


@triton.jit
def _half_to_float(bits):
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _q4_k(matrix, rows, block, COLS: tl.constexpr, WORDS: tl.constexpr, HIGH: tl.constexpr):
    """Q4_K, and Q5_K with `HIGH`: blocks simply follow one another."""
    header = _panels(matrix, rows, COLS // 256 * WORDS * 16) + block * (WORDS * 16)
    word = tl.arange(0, 32)
    first: tl.constexpr = 12 if HIGH else 4
    low = tl.load(header[None, :] + 16 * (first + word)[:, None])
    high = low
    if HIGH:
        high = tl.load(header[None, :] + 16 * (4 + word % 8)[:, None])
        high = high >> (2 * (word // 8))[:, None]
    deltas = tl.load(header)
    scales = tl.load(header + 16)
    least = tl.load(header + 32)
    both = tl.load(header + 48)
    scale0, offset0 = _sub_blocks(deltas, scales, least, both, 0)
    scale1, offset1 = _sub_blocks(deltas, scales, least, both, 1)
    return low, high, scale0, offset0, scale1, offset1


@triton.jit
def _sub_blocks(deltas, scales, least, both, N: tl.constexpr):
    """Scale and offset of the sub-blocks N, N + 2, N + 4 and N + 6: six bits each, out of 12
    bytes."""
    pair = tl.arange(0, 4)[:, None]
    shift = 8 * ((2 * pair + N) & 3)
    scales, least, both = scales[None, :] >> shift, least[None, :] >> shift, both[None, :] >> shift
    scale = tl.where(pair < 2, scales & 63, (both & 15) | ((scales >> 2) & 48))
    offset = tl.where(pair < 2, least & 63, ((both >> 4) & 15) | ((least >> 2) & 48))
    scale = scale.to(tl.float32) * _half_to_float(deltas)[None, :]
    offset = offset.to(tl.float32) * _half_to_float(deltas >> 16)[None, :]
    return _spread(scale, 8), _spread(offset, 8)


@triton.jit
def _q6_k(matrix, rows, block, COLS: tl.constexpr):
    BLOCKS: tl.constexpr = COLS // 256
    PANEL_WORDS: tl.constexpr = BLOCKS * 840
    second = block % 2
    chunk = (block - second) * 840
    header = _panels(matrix, rows, PANEL_WORDS) + (chunk + second * 832)
    in_chunk = tl.minimum(BLOCKS - (block - second), 2)
    delta_at = 2 * (chunk + in_chunk * 832) + second * 16
    delta = tl.load(_half_panels(matrix, rows, PANEL_WORDS) + delta_at).to(tl.float32)
    word = tl.arange(0, 32)
    low = tl.load(header[None, :] + 16 * word[:, None])
    high = tl.load(header[None, :] + 16 * (32 + word // 16 * 8 + word % 8)[:, None])
    high = high >> (2 * (word // 8 % 2))[:, None]
    scale0 = _scales_of_16(header, delta, 0)
    scale1 = _scales_of_16(header, delta, 1)
    return low, high, scale0, 32 * scale0, scale1, 32 * scale1


@triton.jit
def _scales_of_16(header, delta, N: tl.constexpr):
    """Scales of the low (N = 0) or high nibbles of the words: four signed bytes for each half."""
    eight = tl.arange(0, 8)[:, None]
    words = tl.load(header[None, :] + 16 * (48 + 2 * (eight // 4) + N))
    scales = (words << (24 - 8 * (eight % 4))) >> 24
    return _spread(scales.to(tl.float32) * delta[None, :], 4)


@triton.jit
def _four_deltas(matrix, rows, stretch, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """Scales [4, R] of a stretch's blocks of 32: they stand behind the words of each two."""
    block = tl.arange(0, 4)[:, None]
    at = (stretch * 2 + block // 2) * (16 * BLOCK) + 16 * (BLOCK - 2) + block % 2 * 16
    pointer = _half_panels(matrix, rows, COLS // 32 * BLOCK * 4)[None, :]
    return tl.load(pointer + at).to(tl.float32)


@triton.jit
def _q8_0(matrix, rows, stretch, COLS: tl.constexpr):
    word = tl.arange(0, 32)
    at = (stretch * 2 + word // 16) * 272 + word % 16 * 16
    low = tl.load(_panels(matrix, rows, COLS // 32 * 136)[None, :] + at[:, None])
    low = low ^ -0x7F7F7F80  # signed bytes plus 128
    scale = _spread(_four_deltas(matrix, rows, stretch, COLS, 34), 8)
    return low, low, scale, 128 * scale, scale, 128 * scale


@triton.jit
def _q4_0(matrix, rows, stretch, COLS: tl.constexpr, BLOCK: tl.constexpr, HIGH: tl.constexpr):
    """Q4_0, and Q5_0 with `HIGH`: bit 16 n + 4 w + b of a block's first word is the fifth one."""
    LINES: tl.constexpr = (BLOCK - 2) // 4
    word = tl.arange(0, 16)
    block = word // 4
    at = (stretch * 2 + block // 2) * (8 * BLOCK) + block % 2 * (16 * LINES)
    pointer = _panels(matrix, rows, COLS // 32 * BLOCK * 4)[None, :] + at[:, None]
    low = tl.load(pointer + 16 * (LINES - 4 + word % 4)[:, None])
    high = low
    if HIGH:
        high = tl.load(pointer) >> (4 * (word % 4))[:, None]
    bias: tl.constexpr = 16 if HIGH else 8
    scale = _spread(_four_deltas(matrix, rows, stretch, COLS, BLOCK), 4)
    return low, high, scale, bias * scale, scale, bias * scale
