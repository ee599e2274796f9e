"""Tokens grouped by expert, as the grouped kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.kernels.grouped_gemm import Pairs, Tiles, cut_tiles, tile_pairs_for

# Pairs of one launch: their outputs take 30 KB each for R1.
MAX_BATCH_PAIRS = 4096


def group_pairs(
    ids: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    counts: Sequence[int],
    groups: Sequence[Sequence[tuple[int, int]]],
    device: torch.device,
) -> tuple[Pairs, list[list[Tiles]]]:
    """Put the pairs of the experts in `groups` in the order of the groups, and cut each group's
    into tiles, those of one launch together.

    ids, weights: [tokens, top_k], negative ids are nobody's; counts: pairs of every expert; groups:
    (expert, slot).
    """
    experts = [expert for group in groups for expert, _ in group]
    places = _places(ids, counts, experts)
    num_tokens, top_k = ids.shape
    num_pairs = sum(counts[expert] for expert in experts)
    taken = places >= 0
    tokens = np.empty(num_pairs, dtype=np.int32)
    tokens[places[taken]] = np.repeat(np.arange(num_tokens, dtype=np.int32), top_k)[taken.ravel()]
    pair_weights = np.empty(num_pairs, dtype=np.float32)
    pair_weights[places[taken]] = weights[taken]
    rows: list[tuple[int, int, int]] = []
    spans: list[list[tuple[int, int, int]]] = []  # of each group: first row, end row, tile_pairs
    first_pair = 0
    for group in groups:
        sizes = [counts[expert] for expert, _ in group]
        tile_pairs = tile_pairs_for(max(sizes, default=0))
        tiles = cut_tiles([slot for _, slot in group], sizes, first_pair, tile_pairs)
        spans.append([(len(rows) + a, len(rows) + b, tile_pairs) for a, b in _batches(tiles)])
        rows += tiles
        first_pair += sum(sizes)
    data = torch.tensor(rows, dtype=torch.int32).to(device)
    pairs = Pairs(
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(pair_weights).to(device),
        torch.from_numpy(places).to(device),
    )
    return pairs, [
        [
            Tiles(data, first, end - first, rows[first][1], rows[end - 1][2], tile_pairs)
            for first, end, tile_pairs in group
        ]
        for group in spans
    ]


def _places(
    ids: npt.NDArray[np.int32], counts: Sequence[int], experts: Sequence[int]
) -> npt.NDArray[np.int32]:
    """Where each pair goes, [tokens, top_k]; -1: nowhere."""
    sizes = np.asarray(counts, dtype=np.int64)
    flat = ids.ravel()
    named = np.flatnonzero(flat >= 0)
    by_expert = named[np.argsort(flat[named], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    target = np.full(len(sizes), -1, dtype=np.int64)
    target[list(experts)] = np.cumsum(sizes[list(experts)]) - sizes[list(experts)]
    sorted_ids = flat[by_expert]
    ranks = np.arange(len(by_expert)) - starts[sorted_ids]
    places = np.full(ids.size, -1, dtype=np.int32)
    wanted = target[sorted_ids] >= 0
    places[by_expert[wanted]] = (target[sorted_ids] + ranks)[wanted]
    return places.reshape(ids.shape)


def _batches(tiles: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Runs of tiles of at most MAX_BATCH_PAIRS pairs."""
    runs = []
    first = 0
    for end in range(1, len(tiles) + 1):
        if end == len(tiles) or tiles[end][2] - tiles[first][1] > MAX_BATCH_PAIRS:
            runs.append((first, end))
            first = end
    return runs
