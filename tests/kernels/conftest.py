"""Kernels run compiled where there is an NVIDIA GPU, else by Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def other_device(device: str) -> str:
    """A second GPU; where kernels are interpreted, the CPU by another name."""
    if device == "cpu":
        return "cpu:0"
    return "cuda:1" if torch.cuda.device_count() > 1 else "cuda:0"


@pytest.fixture(autouse=True)
def without_gpu_no_gpu_tests(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
