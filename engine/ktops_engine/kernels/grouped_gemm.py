"""A prompt through the experts whose packed weights lie in GPU memory.

Tokens are grouped by expert: a *pair* is a token and one of its experts, pairs of one expert follow
one another, and a *tile* is up to `tile_pairs` of them. Weights are unpacked to bfloat16 on their
way to the tensor cores, by every tile anew; activations come in the order that suits (`stretches`).
Three launches a call, however many experts:

    h[pair] = silu(gate_e x[token]) * (up_e x[token])      [pairs, intermediate] bfloat16
    out[pair] = weight[pair] * down_e h[pair]              [pairs, hidden] float32
    y[token] += out[its pairs], in the order of top_k      no atomics: the same sum every time
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.dot import dot
from ktops_engine.kernels.launch import is_compiling, launch
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.kernels.stretches import (
    STRETCHES,
    has_stretches,
    load_stretch,
    reorder,
    run_weights,
)

ROW_TILE = 64
PAIR_TILES = (16, 32, 64, 128)
NUM_STAGES = 2
COMBINE_COLS = 1024


@dataclass(frozen=True)
class ExpertMatrices:
    """gate, up: [slots, intermediate, hidden]; down: [slots, hidden, intermediate]; all packed."""

    gate: GpuMatrix
    up: GpuMatrix
    down: GpuMatrix


@dataclass(frozen=True)
class Pairs:
    """Who goes where, on the GPU. `tokens`: int32 [pairs], `weights`: float32 [pairs], in groups of
    one expert; `places`: int32 [num_tokens, top_k], where in them a token's pairs are, negative for
    those that are not."""

    tokens: torch.Tensor
    weights: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Tiles:
    """Rows `first_tile` to `first_tile` + `num_tiles` - 1 of `data`: int32 [rows, 3] on the GPU,
    slot, first pair, pair after the last one. The pairs of all of them are `first_pair` to
    `end_pair` - 1, and none has more than `tile_pairs`."""

    data: torch.Tensor
    first_tile: int
    num_tiles: int
    first_pair: int
    end_pair: int
    tile_pairs: int


def tile_pairs_for(most_pairs: int) -> int:
    """How many pairs a tile takes when no expert has more than `most_pairs`."""
    return next((size for size in PAIR_TILES if most_pairs <= size), PAIR_TILES[-1])


def has_kernel(type: QuantType, rows: int, cols: int) -> bool:
    """Whether `grouped_experts` takes packed matrices like this."""
    return has_stretches(type, cols) and rows % ROW_TILE == 0


def cut_tiles(
    slots: list[int], counts: list[int], first_pair: int, tile_pairs: int
) -> list[tuple[int, int, int]]:
    """Rows of `Tiles.data` for experts in `slots` with `counts` pairs each, one after another."""
    tiles = []
    for slot, count in zip(slots, counts, strict=True):
        end = first_pair + count
        tiles += [
            (slot, at, min(at + tile_pairs, end)) for at in range(first_pair, end, tile_pairs)
        ]
        first_pair = end
    return tiles


def grouped_experts(
    x: torch.Tensor, experts: ExpertMatrices, pairs: Pairs, tiles: Tiles, y: torch.Tensor
) -> None:
    """Add the tiles' part to y.

    x: [tokens, hidden] bfloat16, contiguous, in the order of `reorder` for the type of gate and up;
    y: [tokens, hidden] float32, contiguous.
    """
    num_pairs = tiles.end_pair - tiles.first_pair
    if num_pairs == 0:
        return
    gate, up, down = experts.gate, experts.up, experts.down
    h = torch.empty(num_pairs, gate.rows, dtype=torch.bfloat16, device=x.device)
    out = torch.empty(num_pairs, down.rows, dtype=torch.float32, device=x.device)
    # Which sizes of tiles a prompt takes depends on its tokens: all are compiled.
    for tile_pairs in PAIR_TILES if is_compiling() else (tiles.tile_pairs,):
        launch(
            _gate_up, (gate.rows // ROW_TILE * tiles.num_tiles,),
            x, gate.data.view(torch.int32), up.data.view(torch.int32), h, pairs.tokens,
            tiles.data, tiles.first_tile, tiles.first_pair,
            **_sizes(gate, tile_pairs),
        )  # fmt: skip
        launch(
            _down, (down.rows // ROW_TILE * tiles.num_tiles,),
            reorder(h, down.type), down.data.view(torch.int32), out, pairs.weights,
            tiles.data, tiles.first_tile, tiles.first_pair,
            **_sizes(down, tile_pairs),
        )  # fmt: skip
    num_tokens, top_k = pairs.places.shape
    launch(
        _combine, (num_tokens, triton.cdiv(down.rows, COMBINE_COLS)),
        out, pairs.places, y, tiles.first_pair, tiles.end_pair,
        HIDDEN=down.rows, TOP_K=top_k, COLS_TILE=COMBINE_COLS,
    )  # fmt: skip


def _sizes(matrix: GpuMatrix, tile_pairs: int) -> dict[str, int]:
    """Constants of a launch."""
    cut = STRETCHES[matrix.type]
    return {
        "TYPE": int(matrix.type),
        "ROWS": matrix.rows,
        "COLS": matrix.cols,
        "MATRIX_WORDS": matrix.rows * matrix.type.nbytes(matrix.cols) // 4,
        "NIBBLES": cut.nibbles,
        "RUN": cut.groups * cut.words,
        "ROW_TILE": ROW_TILE,
        "PAIR_TILE": tile_pairs,
        "num_warps": 8 if tile_pairs >= 128 else 4,
        "num_stages": NUM_STAGES,
    }


@triton.jit
def _tile(tiles, first_tile, NUM_ROW_TILES: tl.constexpr, ROW_TILE: tl.constexpr):
    """This program's slot, first and end pair, and rows."""
    index = first_tile + tl.program_id(0) // NUM_ROW_TILES
    rows = (tl.program_id(0) % NUM_ROW_TILES) * ROW_TILE + tl.arange(0, ROW_TILE)
    slot = tl.load(tiles + 3 * index).to(tl.int64)
    return slot, tl.load(tiles + 3 * index + 1), tl.load(tiles + 3 * index + 2), rows


@triton.jit(do_not_specialize=["first_tile", "first_pair"])
def _gate_up(
    x, gate, up, h, pair_tokens, tiles, first_tile, first_pair,
    TYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, MATRIX_WORDS: tl.constexpr,
    NIBBLES: tl.constexpr, RUN: tl.constexpr,
    ROW_TILE: tl.constexpr, PAIR_TILE: tl.constexpr,
):  # fmt: skip
    slot, first, end, rows = _tile(tiles, first_tile, ROWS // ROW_TILE, ROW_TILE)
    gate += slot * MATRIX_WORDS
    up += slot * MATRIX_WORDS
    pairs = first + tl.arange(0, PAIR_TILE)
    tokens = tl.load(pair_tokens + pairs, mask=pairs < end, other=0).to(tl.int64)
    columns = x + (tokens * COLS)[:, None] + tl.arange(0, RUN)[None, :]
    gates = tl.zeros([PAIR_TILE, ROW_TILE], tl.float32)
    ups = tl.zeros([PAIR_TILE, ROW_TILE], tl.float32)
    STRETCH: tl.constexpr = 4 * NIBBLES * RUN
    for stretch in range(COLS // STRETCH):
        g = load_stretch(gate, rows, stretch, TYPE, COLS)
        u = load_stretch(up, rows, stretch, TYPE, COLS)
        for run in tl.static_range(4 * NIBBLES):
            part = tl.load(columns + (stretch * STRETCH + run * RUN))
            gates = dot(part, run_weights(g, run // NIBBLES, run % NIBBLES, TYPE), gates)
            ups = dot(part, run_weights(u, run // NIBBLES, run % NIBBLES, TYPE), ups)
    values = gates * tl.sigmoid(gates) * ups
    target = h + ((pairs - first_pair).to(tl.int64) * ROWS)[:, None] + rows[None, :]
    tl.store(target, values.to(tl.bfloat16), mask=(pairs < end)[:, None])


@triton.jit(do_not_specialize=["first_tile", "first_pair"])
def _down(
    h, down, out, pair_weights, tiles, first_tile, first_pair,
    TYPE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, MATRIX_WORDS: tl.constexpr,
    NIBBLES: tl.constexpr, RUN: tl.constexpr,
    ROW_TILE: tl.constexpr, PAIR_TILE: tl.constexpr,
):  # fmt: skip
    slot, first, end, rows = _tile(tiles, first_tile, ROWS // ROW_TILE, ROW_TILE)
    down += slot * MATRIX_WORDS
    pairs = first + tl.arange(0, PAIR_TILE)
    weight = tl.load(pair_weights + pairs, mask=pairs < end, other=0.0)
    # Past the end, a tile reads its last pair again.
    records = (tl.minimum(pairs, end - 1) - first_pair).to(tl.int64)
    columns = h + (records * COLS)[:, None] + tl.arange(0, RUN)[None, :]
    sums = tl.zeros([PAIR_TILE, ROW_TILE], tl.float32)
    STRETCH: tl.constexpr = 4 * NIBBLES * RUN
    for stretch in range(COLS // STRETCH):
        d = load_stretch(down, rows, stretch, TYPE, COLS)
        for run in tl.static_range(4 * NIBBLES):
            part = tl.load(columns + (stretch * STRETCH + run * RUN))
            sums = dot(part, run_weights(d, run // NIBBLES, run % NIBBLES, TYPE), sums)
    target = out + (records * ROWS)[:, None] + rows[None, :]
    tl.store(target, sums * weight[:, None], mask=(pairs < end)[:, None])


@triton.jit(do_not_specialize=["first_pair", "end_pair"])
def _combine(
    out, places, y, first_pair, end_pair,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, COLS_TILE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * COLS_TILE + tl.arange(0, COLS_TILE)
    inside = cols < HIDDEN
    found = False
    total = tl.zeros([COLS_TILE], tl.float32)
    for k in range(TOP_K):
        place = tl.load(places + token * TOP_K + k)
        if (place >= first_pair) & (place < end_pair):
            found = True
            source = out + (place - first_pair).to(tl.int64) * HIDDEN + cols
            total += tl.load(source, mask=inside, other=0.0)
    if found:
        target = y + token * HIDDEN + cols
        tl.store(target, tl.load(target, mask=inside, other=0.0) + total, mask=inside)
