"""Packed weights in the GPU's memory turn into the weights they stand for."""

from __future__ import annotations

import pytest
import torch
from gpu_matrices import QUANTISED, random_matrix

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.dequantize import dequantize
from ktops_engine.native.build import BuildInfo
from ktops_engine.native.load import Matrix, load_native
from ktops_engine.native.structs import Layout

# bfloat16 keeps 8 bits; the interpreter cuts the rest off where the GPU rounds.
BOUND = 4e-3
PLAIN = torch.bfloat16


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_matrices_of_the_tests_are_packed_as_the_native_library_packs(
    type: QuantType, num_blocks: int, native_build: BuildInfo
) -> None:
    matrix, weights = random_matrix(type, 32, num_blocks * type.block_size, 2, "cpu", 5)
    packed = Matrix(
        matrix.data.data_ptr(), type, 32, matrix.cols, num_experts=2, layout=Layout.PANEL16
    )
    unpacked = torch.empty_like(weights)
    load_native(native_build).dequantize_rows(packed, 0, 64, unpacked.data_ptr())
    assert torch.equal(unpacked, weights)


@pytest.mark.parametrize("type", [*QUANTISED, QuantType.BF16], ids=lambda type: type.name)
@pytest.mark.parametrize("num_blocks", [1, 3])
def test_every_weight_comes_back(type: QuantType, num_blocks: int, device: str) -> None:
    matrix, weights = random_matrix(type, 32, num_blocks * type.block_size, 2, device, 6)
    memory = torch.full((66, matrix.cols), torch.nan, dtype=PLAIN, device=device)
    out = dequantize(matrix, out=memory[1:65])
    assert out.data_ptr() == memory[1:].data_ptr()
    assert error(out.view_as(weights), weights) <= BOUND
    assert memory[[0, 65]].isnan().all()


@pytest.mark.parametrize("type", [QuantType.Q6_K, QuantType.BF16], ids=lambda type: type.name)
def test_rows_are_counted_on_through_the_experts(type: QuantType, device: str) -> None:
    matrix, weights = random_matrix(type, 32, 512, 3, device, 7)
    out = dequantize(matrix, first_row=16, num_rows=64)
    assert error(out, weights.view(96, 512)[16:80]) <= BOUND
    assert dequantize(matrix, first_row=96).shape == (0, 512)


def test_rows_that_are_not_there_are_refused(device: str) -> None:
    matrix, _ = random_matrix(QuantType.Q8_0, 32, 64, 1, device, 8)
    with pytest.raises(ValueError, match="rows 16 to 48 of 32"):
        dequantize(matrix, 16, 32)
    with pytest.raises(ValueError, match="not whole panels"):
        dequantize(matrix, 8, 16)
    with pytest.raises(ValueError, match="out is"):
        dequantize(matrix, 0, 16, out=torch.empty(16, 64, device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
def test_large_matrices_come_back(type: QuantType) -> None:
    matrix, weights = random_matrix(type, 1040, 7168, 1, "cuda", 9)
    assert error(dequantize(matrix), weights[0]) <= 2e-3
