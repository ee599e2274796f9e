"""Normalisation of rows against float64.

The bound is the rounding of bfloat16; Triton's interpreter cuts where a GPU rounds.
"""

from __future__ import annotations

import pytest
import torch
from attention_reference import relative_error
from attention_reference import rms_norm as reference

from ktops_engine.kernels.norm import rms_norm

BOUND = 5e-3


@pytest.mark.parametrize(("num_tokens", "n"), [(1, 7168), (3, 1536), (2, 100), (5, 16)])
def test_rows_are_normalised_to_the_rounding_of_bfloat16(
    device: str, num_tokens: int, n: int
) -> None:
    x = torch.randn(num_tokens, n, device=device) * 3
    weight = torch.rand(n, device=device) + 0.5

    y = rms_norm(x, weight, 1e-6)

    assert (y.dtype, y.shape) == (torch.bfloat16, x.shape)
    assert relative_error(y, reference(x, weight, 1e-6)) < BOUND


def test_rows_may_be_part_of_longer_ones_and_bfloat16(device: str) -> None:
    wide = torch.randn(3, 96, device=device).bfloat16()
    weight = torch.rand(64, device=device)

    y = rms_norm(wide[:, :64], weight, 1e-5)

    assert relative_error(y, reference(wide[:, :64], weight, 1e-5)) < BOUND


def test_a_row_of_zeros_stays_zero(device: str) -> None:
    zeros, ones = torch.zeros(1, 48, device=device), torch.ones(48, device=device)
    assert not rms_norm(zeros, ones, 1e-6).any()


def test_a_weight_of_another_length_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="rms_norm"):
        rms_norm(torch.zeros(1, 48, device=device), torch.ones(47, device=device), 1e-6)
