"""Entries of the latent cache and turned queries against float64.

The bound is the rounding of bfloat16; Triton's interpreter cuts where a GPU rounds.
"""

from __future__ import annotations

import pytest
import torch
from attention_reference import random_rotations, relative_error, rms_norm, rotate

from ktops_engine.kernels.latent import (
    rotate_query,
    store_latent,
    store_latent_and_norm_query,
)

BOUND = 5e-3
EPS = 1e-6
SHAPES = [(4, 512, 64), (3, 48, 16), (1, 100, 6)]


def _inputs(device: str, num_tokens: int, rank: int, rope: int) -> tuple[torch.Tensor, ...]:
    kv = torch.randn(num_tokens, rank + rope, device=device) * 2
    weight = torch.rand(rank, device=device) + 0.5
    cache = torch.full((128, rank + rope), float("nan"), dtype=torch.bfloat16, device=device)
    slots = torch.randperm(128)[:num_tokens].to(device)
    return kv, weight, random_rotations(num_tokens, rope, device), cache, slots


def _entries(kv: torch.Tensor, weight: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    rank = weight.shape[0]
    key = rotate(kv[:, None, rank:], cos_sin)[:, 0]
    return torch.cat((rms_norm(kv[:, :rank], weight, EPS), key), dim=-1)


@pytest.mark.parametrize(("num_tokens", "rank", "rope"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_writes_its_slot_and_no_other(
    device: str, num_tokens: int, rank: int, rope: int, dtype: torch.dtype
) -> None:
    kv, weight, cos_sin, cache, slots = _inputs(device, num_tokens, rank, rope)
    kv = kv.to(dtype)

    store_latent(kv, weight, EPS, cos_sin, cache, slots)

    assert relative_error(cache[slots], _entries(kv, weight, cos_sin)) < BOUND
    assert int(cache.isnan().all(-1).sum()) == 128 - num_tokens


def test_a_negative_slot_writes_nothing(device: str) -> None:
    kv, weight, cos_sin, cache, _ = _inputs(device, 3, 48, 16)
    slots = torch.tensor([-1, 7, -1], device=device)

    store_latent(kv, weight, EPS, cos_sin, cache, slots)

    assert cache.isnan().all(-1).nonzero().flatten().tolist() == [i for i in range(128) if i != 7]


def test_the_query_is_normalised_in_the_same_launch(device: str) -> None:
    kv, weight, cos_sin, cache, slots = _inputs(device, 3, 48, 16)
    query, query_weight = torch.randn(3, 80, device=device), torch.rand(80, device=device)

    out = store_latent_and_norm_query(kv, weight, EPS, cos_sin, cache, slots, query, query_weight)

    assert relative_error(out, rms_norm(query, query_weight, EPS)) < BOUND
    assert relative_error(cache[slots], _entries(kv, weight, cos_sin)) < BOUND


def test_a_cache_of_another_width_is_refused(device: str) -> None:
    kv, weight, cos_sin, cache, slots = _inputs(device, 3, 48, 16)
    with pytest.raises(ValueError, match="latent of 64"):
        store_latent(kv, weight, EPS, cos_sin, cache[:, :63], slots)


QUERIES = pytest.mark.parametrize(
    ("num_tokens", "heads", "nope", "rope"), [(2, 128, 128, 64), (3, 5, 24, 6), (1, 16, 64, 32)]
)


@QUERIES
def test_queries_are_turned_by_their_tokens_rotation(
    device: str, num_tokens: int, heads: int, nope: int, rope: int
) -> None:
    q = torch.randn(num_tokens, heads, nope + rope, device=device).bfloat16()
    before = q.clone()
    cos_sin = random_rotations(num_tokens, rope, device)

    rotate_query(q[..., nope:], cos_sin)

    assert relative_error(q[..., nope:], rotate(before[..., nope:], cos_sin)) < BOUND
    assert torch.equal(q[..., :nope], before[..., :nope])
