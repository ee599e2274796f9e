"""Device functions that turn packed words of a quantised matrix into weights.

Where a word stands is the layout PANEL16 of csrc/README.md, what it holds the block formats of
ggml-org/llama.cpp, ggml/src/ggml-common.h. Columns are cut into *units*, as units.py says.

A run of a part is columns 16 * (part * RUNS + run) + 4 * j + k of the unit: byte k of the j-th of
four words. Its quants are never converted to float: they become bits of the mantissa of a number
from 1 to 2, `value`, and `weight = a * value - b` with the `a` and `b` of `scale`. So a sum of
products is a * sum(x * value) - b * sum(x).

Tiles are [units, rows]: words of 16 rows stand side by side, so a lane reads 16 bytes of 4 rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ktops_engine.kernels.units import Q4_0, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0

_ONE = tl.constexpr(0x3F800000)  # the float32 1.0: mantissa 0
_SIGNS = tl.constexpr(-0x7F7F7F80)  # 0x80808080: a signed byte plus 128


@triton.jit
def _block(TYPE: tl.constexpr, unit):
    """The block of a unit, and the unit's place in it."""
    if (TYPE == Q4_K) | (TYPE == Q5_K):
        return unit // 4, unit % 4
    elif TYPE == Q6_K:
        return unit // 2, unit % 2
    else:
        return unit, unit * 0


@triton.jit
def _first_line(TYPE: tl.constexpr, block):
    """Words from the beginning of a panel to word 0 of a block, row 0."""
    if TYPE == Q4_K:
        return block * 576
    elif TYPE == Q5_K:
        return block * 704
    elif TYPE == Q6_K:
        return block // 2 * 1680 + block % 2 * 832
    elif TYPE == Q8_0:
        return block // 2 * 272 + block % 2 * 128
    elif TYPE == Q5_0:
        return block // 2 * 176 + block % 2 * 80
    else:
        return block // 2 * 144 + block % 2 * 64


@triton.jit
def _load_half(
    data, panel, row, block, num_blocks, mask, BLOCK_BYTES: tl.constexpr, WORDS: tl.constexpr
):
    """The float16 scale of each block, as float32. It stands behind the words of its chunk."""
    first = block // 2 * 2
    lines = tl.where(first + 1 < num_blocks, 2, 1) * WORDS
    at = first * (8 * BLOCK_BYTES) + lines * 32 + block % 2 * 16
    halves = data.to(tl.pointer_type(tl.float16), bitcast=True)
    return tl.load(halves + (2 * panel + (at + row)), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_header(TYPE: tl.constexpr, data, panel, row, unit, num_blocks, mask):
    """What `scale` needs of each unit, four tiles [units, rows].

    data: int32 pointer to the matrix; panel: [1, rows] int64, words from there to each row's
    panel; row: [1, rows], the row in its panel; unit, mask: [units, 1]; a masked unit is all 0.
    """
    block, place = _block(TYPE, unit)
    words = data + (panel + (_first_line(TYPE, block) + row))
    if (TYPE == Q4_K) | (TYPE == Q5_K):
        scales = tl.load(words, mask=mask, other=0)
        first = tl.load(words + 16, mask=mask, other=0)
        second = tl.load(words + 32, mask=mask, other=0)
        third = tl.load(words + 48, mask=mask, other=0)
        return scales, first, second, third
    elif TYPE == Q6_K:
        d = _load_half(data, panel, row, block, num_blocks, mask, 210, 52)
        first = tl.load(words + (768 + 32 * place), mask=mask, other=0)
        second = tl.load(words + (784 + 32 * place), mask=mask, other=0)
        return d, first, second, second
    else:
        if TYPE == Q8_0:
            d = _load_half(data, panel, row, block, num_blocks, mask, 34, 8)
        elif TYPE == Q5_0:
            d = _load_half(data, panel, row, block, num_blocks, mask, 22, 5)
        else:
            d = _load_half(data, panel, row, block, num_blocks, mask, 18, 4)
        return d, d, d, d


@triton.jit
def _half_to_float(bits):
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def scale(TYPE: tl.constexpr, PART: tl.constexpr, RUN: tl.constexpr, header, unit):
    """a and b, float32 [units, rows], of one run: its weights are a * value - b."""
    if (TYPE == Q4_K) | (TYPE == Q5_K):
        place = unit % 4
        shift = place % 2 * 16 + 8 * PART
        # Of the later sub-blocks four bits are in the third word and two in the first or second.
        is_early = place < 2
        upper_shift = tl.where(is_early, shift, shift + 2)
        upper = tl.where(is_early, 63, 48)
        lower = tl.where(is_early, 0, 15)
        six = ((header[1] >> upper_shift) & upper) | ((header[3] >> shift) & lower)
        low = ((header[2] >> upper_shift) & upper) | ((header[3] >> (shift + 4)) & lower)
        a = _half_to_float(header[0]) * _quant_unit(TYPE, PART) * six.to(tl.float32)
        return a, tl.fma(_half_to_float(header[0] >> 16), low.to(tl.float32), a)
    elif TYPE == Q6_K:
        word = header[1 + PART // 2]
        signed = (word << (24 - 8 * (PART % 2 * 2 + RUN))) >> 24
        step = header[0] * signed.to(tl.float32)
        return step * 128, step * (128 + 32)
    elif TYPE == Q8_0:
        return header[0] * 256, header[0] * (256 + 128)
    elif TYPE == Q5_0:
        return header[0] * 128, header[0] * (128 + 16)
    else:
        return header[0] * _quant_unit(TYPE, PART), header[0] * (_quant_unit(TYPE, PART) + 8)


@triton.jit
def _quant_unit(TYPE: tl.constexpr, PART: tl.constexpr):
    """How much greater a quant is than what `value` adds to 1 for it, of a type with nibbles."""
    if (TYPE == Q4_K) | (TYPE == Q4_0):
        return 128 << (4 * PART)
    else:
        return 128


@triton.jit
def load_run(TYPE: tl.constexpr, RUN: tl.constexpr, data, panel, row, unit, mask):
    """The words of all parts of one run, thirteen tiles [units, rows]: four of quants, four of
    further quants (Q6_K), four of high bits (Q5_K, Q6_K and Q5_0), and the bits of 1.0.

    Arguments as in `load_header`. The 1.0 hangs on the mask: were it a constant, the compiler would
    spend another instruction on each weight.
    """
    one = (tl.where(mask, _ONE, 0),)
    block, place = _block(TYPE, unit)
    words = data + (panel + (_first_line(TYPE, block) + row))
    if (TYPE == Q4_K) | (TYPE == Q5_K):
        quants = words + (128 * place + (4 + 4 * RUN) * 16)
        if TYPE == Q5_K:
            quants += 128
        q = _load_lines(quants, mask)
        if TYPE == Q5_K:
            h = _load_lines(words + (4 + 4 * RUN) * 16, mask)
            # So that the bits of the unit's parts are bits 0 and 1 of each byte.
            shift = 2 * place
            h = (h[0] >> shift, h[1] >> shift, h[2] >> shift, h[3] >> shift)
            return q + q + h + one
        else:
            return q + q + q + one
    elif TYPE == Q6_K:
        quants = words + (256 * place + 64 * RUN)
        high = words + (512 + 128 * place + 64 * RUN)
        q = _load_lines(quants, mask) + _load_lines(quants + 128, mask)
        return q + _load_lines(high, mask) + one
    elif TYPE == Q5_0:
        h = tl.load(words, mask=mask, other=0)
        q = _load_lines(words + 16, mask)
        return q + q + (h, h, h, h) + one
    else:
        q = _load_lines(words + 64 * RUN, mask)
        return q + q + q + one


@triton.jit
def _load_lines(words, mask):
    return (
        tl.load(words, mask=mask, other=0),
        tl.load(words + 16, mask=mask, other=0),
        tl.load(words + 32, mask=mask, other=0),
        tl.load(words + 48, mask=mask, other=0),
    )


@triton.jit
def part_word(TYPE: tl.constexpr, PART: tl.constexpr, J: tl.constexpr, run):
    """The J-th of a part's four words in a run that `load_run` gave. Its quants are the bytes, but
    of Q4_K and Q4_0 the nibbles of the bytes, low ones in part 0, high ones in part 1."""
    if TYPE == Q8_0:
        return run[J] ^ _SIGNS
    elif TYPE == Q6_K:
        low = (run[4 * (PART % 2) + J] >> (4 * (PART // 2))) & 0x0F0F0F0F
        return low | (_moved(run[8 + J], 4 - 2 * PART) & 0x30303030)
    elif TYPE == Q5_K:
        low = (run[J] >> (4 * PART)) & 0x0F0F0F0F
        return low | ((run[8 + J] << (4 - PART)) & 0x10101010)
    elif TYPE == Q5_0:
        low = (run[J] >> (4 * PART)) & 0x0F0F0F0F
        # The product has bit k of the four at bit 8 k + 4.
        four = (run[8 + J] >> (16 * PART + 4 * J)) & 15
        return low | ((four * 0x02040810) & 0x10101010)
    else:
        return run[J]


@triton.jit
def _moved(word, SHIFT: tl.constexpr):
    """A word's bits moved to the left by SHIFT, to the right where that is negative."""
    if SHIFT < 0:
        return word >> -SHIFT
    else:
        return word << SHIFT


@triton.jit
def value(TYPE: tl.constexpr, PART: tl.constexpr, K: tl.constexpr, word, one):
    """Byte K of a word of `part_word` as a float32 from 1 to 2. one: the last of `load_run`."""
    if TYPE == Q8_0:
        bits = _moved(word, 15 - 8 * K) & 0x7F8000
    elif (TYPE == Q4_K) | (TYPE == Q4_0):
        # Two nibbles of a word that need the same shift share it.
        bits = _moved(word, 16 - 8 * PART - 8 * K) & (0xF0000 >> (4 * PART))
    else:
        bits = _moved(word, 16 - 8 * K) & 0x3F0000
    return (bits | one).to(tl.float32, bitcast=True)


@triton.jit
def _weights(TYPE: tl.constexpr, PART: tl.constexpr, J: tl.constexpr, run, a, b):
    """The columns of a word, [units, rows, 4] bfloat16."""
    word = part_word(TYPE, PART, J, run)
    one = run[12]
    w0 = (a * value(TYPE, PART, 0, word, one) - b).to(tl.bfloat16)
    w1 = (a * value(TYPE, PART, 1, word, one) - b).to(tl.bfloat16)
    w2 = (a * value(TYPE, PART, 2, word, one) - b).to(tl.bfloat16)
    w3 = (a * value(TYPE, PART, 3, word, one) - b).to(tl.bfloat16)
    joined = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(joined, (word.shape[0], word.shape[1], 4))


@triton.jit
def unpack_run(TYPE: tl.constexpr, PART: tl.constexpr, RUN: tl.constexpr, run, header, unit):
    """The weights of one run of a part, [units, rows, 16] bfloat16 in the order of the columns.

    run, header: of `load_run` and `load_header`.
    """
    a, b = scale(TYPE, PART, RUN, header, unit)
    w0 = _weights(TYPE, PART, 0, run, a, b)
    w1 = _weights(TYPE, PART, 1, run, a, b)
    w2 = _weights(TYPE, PART, 2, run, a, b)
    w3 = _weights(TYPE, PART, 3, run, a, b)
    joined = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    # Of [units, rows, byte, word / 2, word % 2].
    ordered = tl.permute(joined, (0, 1, 3, 4, 2))
    return tl.reshape(ordered, (w0.shape[0], w0.shape[1], 16))
