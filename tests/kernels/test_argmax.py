"""The likeliest token of each sequence, whatever its logits are."""

from __future__ import annotations

import pytest
import torch

from ktops_engine.kernels import argmax


def found(logits: torch.Tensor, device: str) -> tuple[list[int], list[float]]:
    logits = logits.to(device)
    keys = argmax.new_keys(logits)
    argmax.argmax(logits, keys)
    if device == "cuda":
        torch.cuda.synchronize()
    tokens, values = argmax.read(keys)
    return tokens.tolist(), values.tolist()


@pytest.mark.parametrize("num_tokens", [1, 100, 4096, 12_289])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_greatest_logit_and_its_token_are_found(num_rows, num_tokens, device):
    logits = torch.randn(num_rows, num_tokens) * 10 - 5
    expected = logits.max(dim=1)
    assert found(logits, device) == (expected.indices.tolist(), expected.values.tolist())


def test_of_equal_logits_the_first_counts(device):
    logits = torch.zeros(2, 9000)
    logits[1, [17, 8000]] = 2.5
    assert found(logits, device) == ([0, 17], [0.0, 2.5])


@pytest.mark.parametrize("broken", [float("nan"), -float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_found_in_its_own_row(broken, device):
    logits = torch.randn(3, 5000)
    logits[1, 4321] = broken
    tokens, values = found(logits, device)
    assert tokens[1] == 4321
    assert not torch.isfinite(torch.tensor(values[1]))
    assert torch.isfinite(torch.tensor([values[0], values[2]])).all()


def test_logits_of_minus_infinity_alone_are_told(device):
    assert found(torch.full((1, 50), -torch.inf), device) == ([0], [-torch.inf])


def test_what_it_cannot_read_is_refused(device):
    logits = torch.zeros(2, 64, device=device)
    keys = argmax.new_keys(logits)
    for wrong in (logits.half(), logits[:1], logits.t()):
        with pytest.raises(ValueError, match="argmax of"):
            argmax.argmax(wrong, keys)
