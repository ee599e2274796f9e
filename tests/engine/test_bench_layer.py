"""Random layers of experts: valid blocks, results that float64 confirms, timings that add up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ktops_engine.bench.blocks import random_blocks
from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import SHAPES, LayerShape, parse_shape, q4_k_m_shape
from ktops_engine.bench.timing import LayerCall, Reader, time_layer
from ktops_engine.gguf import QuantType, dequantize
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.load import Native, Pool, load_native

SMALL = q4_k_m_shape(512, 256, 6, 3)


@pytest.fixture
def native(native_build: BuildInfo) -> Native:
    return load_native(native_build)


@pytest.fixture
def pool(native: Native) -> Iterator[Pool]:
    with native.create_pool([0, 1]) as pool:
        yield pool


@pytest.fixture
def layer(native: Native, pool: Pool) -> Iterator[ExpertLayer]:
    with ExpertLayer(native, pool, SMALL) as layer:
        yield layer


@pytest.mark.parametrize(
    "type",
    [t for t in QuantType if t not in (QuantType.F32, QuantType.F16, QuantType.BF16)],
    ids=lambda t: t.name,
)
def test_random_blocks_are_finite_centred_and_of_moderate_size(type):
    rng = np.random.default_rng(1)
    blocks = random_blocks(type, 16, 1024, rng)
    values = dequantize(type, blocks, (16, 1024))
    assert np.isfinite(values).all()
    assert 0.5 < values.std() * 32 < 12
    assert abs(values.mean()) < 0.15 * values.std()


def test_no_scale_is_subnormal_in_float16():
    blocks = random_blocks(QuantType.Q6_K, 16, 8192, np.random.default_rng(1))
    scales = blocks.reshape(-1, 210)[:, 208:].copy().view(np.float16)
    assert (scales >= np.finfo(np.float16).tiny).all()


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
def test_a_result_agrees_with_float64(layer, pool, num_tokens):
    call = LayerCall(layer.shape, num_tokens, np.random.default_rng(2))
    call.run(layer, pool)
    assert call.relative_l2(layer) < 5e-3


def test_a_wrong_result_is_noticed(layer, pool):
    call = LayerCall(layer.shape, 2, np.random.default_rng(2))
    call.run(layer, pool)
    call.y[-1] *= 1.1
    assert call.relative_l2(layer) == pytest.approx(0.1, rel=0.01)


def test_a_token_never_takes_an_expert_twice(layer):
    call = LayerCall(layer.shape, 50, np.random.default_rng(3))
    assert call.redraw() == SMALL.num_experts
    assert all(len(set(row)) == SMALL.num_experts_per_tok for row in call.ids.tolist())


def test_a_timing_counts_what_its_tokens_touched(layer, pool):
    timing = time_layer(pool, layer, 64, seconds=0.01)
    assert timing.num_calls >= 5
    # All experts are touched by so many tokens, so the rate follows from the time.
    assert timing.touched_rate == pytest.approx(SMALL.layer_bytes / timing.seconds, rel=0.3)
    assert timing.flops == pytest.approx(SMALL.flops(64) / timing.seconds)
    assert timing.share is None  # a layer in the caches says nothing of the memory


def test_plain_reads_cover_the_largest_projection(layer, pool):
    reader = Reader(layer, pool)
    largest = layer.largest_buffer.num_bytes
    assert 0.9 * largest < reader.num_bytes <= largest
    assert reader.rate(pool) > 0


def test_known_shapes_have_the_bytes_of_the_models():
    assert SHAPES["r1"].expert_bytes == 28_557_312
    assert SHAPES["r1"].layer_bytes == 256 * 28_557_312
    assert SHAPES["v2-lite"].down_type is QuantType.Q5_0
    assert isinstance(parse_shape("64x32x4x1"), LayerShape)
