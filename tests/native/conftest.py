"""The library under test, random weights in every format, and sources that build in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as QuantType

from ktops_engine.native import build
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.load import Native, Pool, load_native

# Where the float16 scales of a block stand; the rest of its bits may be anything.
SCALE_OFFSETS = {
    QuantType.Q4_0: (0,),
    QuantType.Q5_0: (0,),
    QuantType.Q8_0: (0,),
    QuantType.Q4_K: (0, 2),
    QuantType.Q5_K: (0, 2),
    QuantType.Q6_K: (208,),
}

TINY_CMAKE = """
cmake_minimum_required(VERSION 3.22)
project(ktops LANGUAGES CXX)
add_library(ktops SHARED src/tiny.cpp)
"""

RandomWeights = Callable[[QuantType, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def native(native_build: BuildInfo) -> Native:
    return load_native(native_build)


@pytest.fixture
def pool(native: Native) -> Iterator[Pool]:
    with native.create_pool([0, 1]) as pool:
        yield pool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


@pytest.fixture
def random_weights(rng: np.random.Generator) -> RandomWeights:
    """Valid random blocks of a type and shape, and the float32 values gguf reads in them."""

    def make(type: QuantType, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        count = int(np.prod(shape))
        if type not in SCALE_OFFSETS:
            values = rng.standard_normal(count).astype(np.float32)
            packed = gguf.quants.quantize(values, type).view(np.uint8).copy()
        else:
            block_size, block_bytes = gguf.GGML_QUANT_SIZES[type]
            blocks = rng.integers(0, 256, (count // block_size, block_bytes), dtype=np.uint8)
            for offset in SCALE_OFFSETS[type]:
                scales = rng.uniform(0.001, 0.01, len(blocks)).astype(np.float16)
                blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
            packed = blocks.reshape(-1)
        return packed, gguf.quants.dequantize(packed, type).reshape(shape)

    return make


@pytest.fixture
def tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """C++ sources of one function, built in place of the real ones into a cache of their own."""
    sources = tmp_path / "csrc"
    (sources / "src").mkdir(parents=True)
    (sources / "CMakeLists.txt").write_text(TINY_CMAKE)
    (sources / "src" / "tiny.cpp").write_text('extern "C" int tiny() { return 1; }\n')
    monkeypatch.setattr(build, "find_sources", lambda: sources)
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "cache"))
    return sources
