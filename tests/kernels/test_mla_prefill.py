"""Causal attention per head against float64; bound as in test_mla_decode."""

from __future__ import annotations

import pytest
import torch
from attention_reference import relative_error

from ktops_engine.kernels.mla_prefill import mla_prefill

BOUND = 6e-3


def _check(
    device: str, num_new: int, num_context: int, heads: int, nope: int, rope: int, v_dim: int
) -> None:
    torch.manual_seed(num_new)
    q = torch.randn(num_new, heads, nope + rope, device=device).bfloat16()
    k_nope = torch.randn(heads, num_context, nope, device=device).bfloat16()
    entries = torch.randn(num_context, 10 + rope, device=device).bfloat16()
    value = torch.randn(heads, num_context, v_dim, device=device).bfloat16()
    held = torch.full((num_new + 2, heads + 1, v_dim), float("nan"), device=device).bfloat16()
    scale = (nope + rope) ** -0.5

    mla_prefill(q, k_nope, entries[:, 10:], value, scale, held[1:-1, :heads])

    shared = entries[:, 10:].double().expand(heads, -1, -1)
    key = torch.cat((k_nope.double(), shared), dim=-1)
    scores = q.double().transpose(0, 1) @ key.transpose(1, 2) * scale
    seen = torch.ones(num_new, num_context, dtype=torch.bool, device=device)
    scores.masked_fill_(~seen.tril(num_context - num_new), float("-inf"))
    expected = (scores.softmax(-1) @ value.double()).transpose(0, 1)
    assert relative_error(held[1:-1, :heads], expected) < BOUND
    assert held[[0, -1]].isnan().all()
    assert held[:, heads].isnan().all()


@pytest.mark.parametrize(
    ("num_new", "num_context"), [(1, 1), (2, 70), (130, 130), (64, 200), (100, 228)]
)
def test_every_token_sees_the_context_up_to_itself(
    device: str, num_new: int, num_context: int
) -> None:
    _check(device, num_new, num_context, heads=2, nope=32, rope=16, v_dim=32)


def test_sizes_need_not_be_powers_of_two(device: str) -> None:
    _check(device, 20, 90, heads=3, nope=24, rope=6, v_dim=40)


@pytest.mark.gpu
@pytest.mark.parametrize(("num_new", "num_context"), [(1000, 1000), (513, 3000), (17, 2048)])
def test_models_of_full_size(device: str, num_new: int, num_context: int) -> None:
    _check(device, num_new, num_context, heads=16, nope=128, rope=64, v_dim=128)


def test_an_output_of_another_shape_is_refused(device: str) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)

    with pytest.raises(ValueError, match="output"):
        mla_prefill(
            zeros(2, 3, 48), zeros(3, 5, 32), zeros(5, 16), zeros(3, 5, 32), 1.0, zeros(2, 3, 31)
        )
