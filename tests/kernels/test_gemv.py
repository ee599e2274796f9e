"""Products with the few tokens of a decode step, against float64."""

from __future__ import annotations

import pytest
import torch
from gpu_matrices import QUANTISED, random_matrix

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.gemv import gemv, gemv_gate_up, gemv_heads, gemv_stacked
from ktops_engine.kernels.gemv_few import FEW_TOKENS
from ktops_engine.layers import gpu_linear
from ktops_engine.layers.gpu_linear import GpuGateUp, GpuLinear

TYPES = [*QUANTISED, QuantType.BF16]
# Weights and results are rounded to bfloat16, which the interpreter does by cutting off.
BOUND = 8e-3
FLOAT_BOUND = 1e-4  # where sums are float32 throughout

MORE = FEW_TOKENS + 1

by_type = pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)


def tokens(*shape: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)


def products(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return x.double() @ weights.double().T


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_tokens", [1, FEW_TOKENS])
@by_type
def test_few_tokens_are_multiplied_in_float32(
    type: QuantType, num_tokens: int, device: str
) -> None:
    matrix, weights = random_matrix(type, 48, 3 * max(type.block_size, 32), 1, device, 1)
    x = tokens(num_tokens, matrix.cols, device=device)
    y = gemv(matrix, x, out_dtype=torch.float32)
    assert y.dtype == torch.float32
    assert error(y, products(x, weights[0])) <= FLOAT_BOUND
    assert gemv(matrix, x).dtype == torch.bfloat16


@by_type
def test_more_tokens_are_multiplied(type: QuantType, device: str) -> None:
    matrix, weights = random_matrix(type, 80, 3 * max(type.block_size, 32), 1, device, 2)
    x = tokens(MORE, matrix.cols, device=device)
    assert error(gemv(matrix, x), products(x, weights[0])) <= BOUND


@pytest.mark.parametrize("num_tokens", [1, 3, 16])
@pytest.mark.parametrize("type", [QuantType.Q5_0, QuantType.BF16], ids=lambda type: type.name)
def test_products_are_added_to_the_residual_stream(
    type: QuantType, num_tokens: int, device: str
) -> None:
    matrix, weights = random_matrix(type, 48, 96, 1, device, 3)
    x = tokens(num_tokens, 96, device=device)
    memory = torch.randn(num_tokens + 2, 48, device=device)
    before = memory.clone()
    stream = memory[1:-1]
    assert gemv(matrix, x, add_to=stream) is stream
    assert error(stream, before[1:-1].double() + products(x, weights[0])) <= BOUND
    assert torch.equal(memory[[0, -1]], before[[0, -1]])


@pytest.mark.parametrize("num_tokens", [1, MORE])
@pytest.mark.parametrize(
    "types",
    [(QuantType.Q4_K, QuantType.Q4_K), (QuantType.Q8_0, QuantType.Q5_0), (QuantType.BF16,) * 2],
    ids=lambda types: "-".join(type.name for type in types),
)
def test_gate_and_up_are_one_launch(
    types: tuple[QuantType, QuantType], num_tokens: int, device: str
) -> None:
    gate, gate_weights = random_matrix(types[0], 32, 256, 1, device, 4)
    up, up_weights = random_matrix(types[1], 32, 256, 1, device, 5)
    x = tokens(num_tokens, 256, device=device)
    gated = torch.nn.functional.silu(products(x, gate_weights[0]))
    expected = gated * products(x, up_weights[0])
    assert error(gemv_gate_up(gate, up, x), expected) <= 2 * BOUND


def test_columns_of_a_matrix_with_few_rows_are_cut(device: str) -> None:
    gate, gate_weights = random_matrix(QuantType.Q8_0, 48, 1056, 1, device, 11)
    up, up_weights = random_matrix(QuantType.Q8_0, 48, 1056, 1, device, 12)
    x = tokens(MORE, 1056, device=device)
    gates, ups = products(x, gate_weights[0]), products(x, up_weights[0])
    assert error(gemv(gate, x), gates) <= BOUND
    stream = torch.ones(MORE, 48, device=device)
    assert error(gemv(up, x, add_to=stream), ups + 1) <= BOUND
    assert error(gemv_gate_up(gate, up, x), torch.nn.functional.silu(gates) * ups) <= 2 * BOUND


@pytest.mark.parametrize("num_tokens", [1, FEW_TOKENS, MORE])
@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.BF16], ids=lambda type: type.name)
def test_every_head_has_its_matrix(type: QuantType, num_tokens: int, device: str) -> None:
    matrix, weights = random_matrix(type, 16, 128, 3, device, 6)
    x = tokens(num_tokens, 3, 192, device=device)[..., 64:]
    expected = torch.einsum("thc,hrc->thr", x.double(), weights.double())
    assert error(gemv_heads(matrix, x), expected) <= BOUND


@pytest.mark.parametrize("num_tokens", [1, MORE])
@pytest.mark.parametrize(
    "types",
    [(QuantType.Q4_0, QuantType.Q4_0), (QuantType.Q8_0, QuantType.Q5_0), (QuantType.BF16,) * 2],
    ids=lambda types: "-".join(type.name for type in types),
)
def test_two_matrices_are_multiplied_at_once(
    types: tuple[QuantType, QuantType], num_tokens: int, device: str
) -> None:
    top, top_weights = random_matrix(types[0], 128, 96, 1, device, 13)
    below, below_weights = random_matrix(types[1], 48, 96, 1, device, 14)
    x = tokens(num_tokens, 96, device=device)
    first, second = gemv_stacked(top, below, x)
    assert first.dtype == second.dtype == torch.float32
    assert error(first, products(x, top_weights[0])) <= BOUND
    assert error(second, products(x, below_weights[0])) <= BOUND


@pytest.mark.parametrize("num_tokens", [2, 17])
@pytest.mark.parametrize("type", [QuantType.Q4_0, QuantType.BF16], ids=lambda type: type.name)
def test_layers_take_any_number_of_tokens(
    type: QuantType, num_tokens: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_linear, "PIECE_BYTES", 2 * 64 * 32)
    monkeypatch.setattr(gpu_linear, "PIECE_ROWS", 32)
    matrix, weights = random_matrix(type, 80, 64, 1, device, 7)
    x = tokens(num_tokens, 64, device=device)
    expected = products(x, weights[0])
    assert error(GpuLinear(matrix)(x), expected) <= BOUND
    stream = torch.zeros(num_tokens, 80, device=device)
    assert error(GpuLinear(matrix)(x, add_to=stream), expected) <= BOUND
    gated = torch.nn.functional.silu(expected) * expected
    assert error(GpuGateUp(matrix, matrix)(x), gated) <= 2 * BOUND


def test_what_does_not_fit_is_refused(device: str) -> None:
    matrix, _ = random_matrix(QuantType.Q8_0, 16, 64, 1, device, 8)
    other, _ = random_matrix(QuantType.Q8_0, 32, 64, 2, device, 9)
    x = tokens(1, 64, device=device)
    with pytest.raises(ValueError, match="64 columns"):
        gemv(matrix, tokens(17, 64, device=device))
    with pytest.raises(ValueError, match="not rows of bfloat16"):
        gemv(matrix, x.float())
    with pytest.raises(ValueError, match="not rows of bfloat16"):
        gemv(matrix, tokens(2, 65, device=device)[:, 1:])
    with pytest.raises(ValueError, match="2 matrices"):
        gemv(other, x)
    with pytest.raises(ValueError, match="add_to"):
        gemv(matrix, x, add_to=torch.zeros(1, 16, dtype=torch.float64, device=device))
    with pytest.raises(ValueError, match="gate is 16 x 64"):
        gemv_gate_up(matrix, other, x)
    with pytest.raises(ValueError, match="there are 2 matrices"):
        gemv_heads(other, x[:, None])


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, FEW_TOKENS, 16])
@by_type
def test_large_matrices_give_the_same_bits_each_time(type: QuantType, num_tokens: int) -> None:
    matrix, weights = random_matrix(type, 1040, 7168, 1, "cuda", 10)
    x = tokens(num_tokens, 7168, device="cuda")
    first = gemv(matrix, x, out_dtype=torch.float32)
    assert error(first, products(x, weights[0])) <= 5e-3
    for _ in range(20):
        assert torch.equal(gemv(matrix, x, out_dtype=torch.float32), first)
