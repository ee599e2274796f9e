"""Attention of single tokens over the paged latent cache against float64.

Bound: bfloat16's rounding of weights and of the result, 6e-3 relative L2 (Triton's interpreter cuts
where a GPU rounds).
"""

from __future__ import annotations

import random

import pytest
import torch
from attention_reference import latent_attention, random_rotations, relative_error

from ktops_engine.kernels.mla_decode import DecodeTiling, default_tiling, mla_decode

BOUND = 6e-3


def _inputs(
    device: str,
    lengths: list[int],
    heads: int,
    rank: int,
    rope: int,
    max_blocks: int,
    seed: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Queries, rotations, a cache whose unused rows are NaN, and block tables in any order."""
    torch.manual_seed(seed)
    num_blocks = max_blocks * len(lengths) + 3
    cache = torch.full((num_blocks * 64, rank + rope), float("nan"))
    tables = torch.randperm(num_blocks)[: max_blocks * len(lengths)].view(len(lengths), -1)
    for table, length in zip(tables, lengths, strict=True):
        slots = (table[:, None] * 64 + torch.arange(64)).flatten()[:length]
        cache[slots] = torch.randn(length, rank + rope) * 1.5
    q_latent, q_rope = torch.randn(len(lengths), heads, rank + rope).split((rank, rope), dim=-1)
    return (
        q_latent.bfloat16().to(device),
        q_rope.bfloat16().to(device),
        random_rotations(len(lengths), rope, device, seed),
        cache.bfloat16().to(device),
        tables.int().contiguous().to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
    )


@pytest.mark.parametrize(
    ("lengths", "heads", "rank", "rope"),
    [
        ([1, 64, 65, 300], 4, 64, 16),
        ([63, 7], 20, 48, 24),
        ([200], 64, 32, 8),
    ],
)
def test_any_length_and_block_order_gives_the_attention_of_float64(
    device: str, lengths: list[int], heads: int, rank: int, rope: int
) -> None:
    inputs = _inputs(device, lengths, heads, rank, rope, max_blocks=5)

    out = mla_decode(*inputs, 0.1)

    assert relative_error(out, latent_attention(*inputs, 0.1)) < BOUND


@pytest.mark.parametrize("num_splits", [1, 3, 5, 8])
def test_the_number_of_splits_does_not_change_the_result(device: str, num_splits: int) -> None:
    inputs = _inputs(device, [257, 64, 1], heads=3, rank=32, rope=16, max_blocks=8)
    tiling = DecodeTiling(num_splits, block_heads=16, tile=32, num_stages=2, num_warps=4)

    out = mla_decode(*inputs, 0.2, tiling=tiling)

    assert relative_error(out, latent_attention(*inputs, 0.2)) < BOUND


def test_a_row_of_no_tokens_is_zero_and_leaves_the_others_alone(device: str) -> None:
    inputs = _inputs(device, [0, 70], heads=2, rank=32, rope=16, max_blocks=2)

    out = mla_decode(*inputs, 0.2)

    assert not out[0].any()
    assert relative_error(out, latent_attention(*inputs, 0.2)) < BOUND


def test_a_token_does_not_depend_on_the_others_of_its_batch(device: str) -> None:
    q_latent, q_rope, cos_sin, cache, tables, lengths = _inputs(
        device, [100, 31, 64], heads=2, rank=32, rope=16, max_blocks=2
    )
    tiling = default_tiling(3, 2, 2, num_processors=132)
    together = mla_decode(q_latent, q_rope, cos_sin, cache, tables, lengths, 0.2, tiling=tiling)
    for i in range(3):
        row = slice(i, i + 1)
        alone = mla_decode(
            q_latent[row], q_rope[row], cos_sin[row], cache, tables[row], lengths[row], 0.2,
            tiling=tiling,
        )  # fmt: skip
        assert torch.equal(alone[0], together[i])


def test_large_scores_do_not_overflow(device: str) -> None:
    q_latent, *others = _inputs(device, [130], heads=2, rank=32, rope=16, max_blocks=3)
    inputs = (q_latent * 100, *others)

    out = mla_decode(*inputs, 1.0)

    assert relative_error(out, latent_attention(*inputs, 1.0)) < 2e-2


def test_splits_fill_the_processors_but_never_outnumber_the_blocks() -> None:
    assert default_tiling(1, 128, 128, 132).num_splits == 66
    assert default_tiling(1, 128, 10, 132).num_splits == 10
    assert default_tiling(100, 128, 128, 132).num_splits == 1


def test_rotations_of_another_width_are_refused(device: str) -> None:
    q_latent, q_rope, cos_sin, *others = _inputs(device, [3], 2, 32, 16, max_blocks=1)
    with pytest.raises(ValueError, match="rotations"):
        mla_decode(q_latent, q_rope, cos_sin[:, :4], *others, 0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [128, 16])
@pytest.mark.parametrize("lengths", [[8192], [1], [129, 8191, 4000, 65, 1, 64, 8192]])
def test_models_of_full_size(device: str, heads: int, lengths: list[int]) -> None:
    inputs = _inputs(device, lengths, heads, 512, 64, max_blocks=128)

    out = mla_decode(*inputs, 0.1352)

    assert relative_error(out, latent_attention(*inputs, 0.1352)) < BOUND


@pytest.mark.gpu
def test_a_captured_graph_follows_lengths_and_tables(device: str) -> None:
    first = _inputs(device, [700, 20], 128, 512, 64, max_blocks=16)
    second = _inputs(device, [33, 1000], 128, 512, 64, max_blocks=16, seed=1)
    held = tuple(part.clone() for part in first)
    mla_decode(*held, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mla_decode(*held, 0.1)
    for inputs in (second, first):
        for part, value in zip(held, inputs, strict=True):
            part.copy_(value)
        out.fill_(float("nan"))
        graph.replay()
        assert relative_error(out, latent_attention(*inputs, 0.1)) < BOUND


@pytest.mark.parametrize("seed", range(3))
def test_batches_of_random_lengths_and_splits(device: str, seed: int) -> None:
    generator = random.Random(seed)
    max_blocks = generator.randint(1, 6)
    lengths = [generator.randint(1, 64 * max_blocks) for _ in range(generator.randint(1, 3))]
    inputs = _inputs(device, lengths, generator.randint(1, 20), 16, 16, max_blocks, seed)
    tiling = DecodeTiling(generator.randint(1, 9), 16, tile=64, num_stages=2, num_warps=4)

    out = mla_decode(*inputs, 0.3, tiling=tiling)

    assert relative_error(out, latent_attention(*inputs, 0.3)) < BOUND
