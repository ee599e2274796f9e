"""The kernels through ctypes, with numpy in float64 on gguf's own dequantisation as the judge."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QuantType

from ktops_engine.errors import KtopsError
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.load import Matrix, Native, Pool, load_native
from ktops_engine.native.structs import Layout

TYPES = [
    QuantType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def allowed_error(*types: QuantType, in_bf16: bool = False) -> float:
    """`in_bf16`: quantised weights and activations are rounded to bfloat16."""
    exact = {QuantType.F32, QuantType.F16, QuantType.BF16}
    return 5e-6 if exact.issuperset(types) else 5e-3 if in_bf16 else 1e-4


def matmul(pool: Pool, weight: Matrix, x: np.ndarray) -> np.ndarray:
    y = np.full((len(x), weight.rows), np.nan, dtype=np.float32)
    pool.matmul(weight, x.ctypes.data, y.ctypes.data, len(x))
    return y


def moe_forward(
    pool: Pool, matrices: list[Matrix], x: np.ndarray, ids: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    y = np.full_like(x, np.nan)
    pointers = (a.ctypes.data for a in (x, ids, weights, y))
    pool.moe_forward(*matrices, *pointers, len(x), ids.shape[1])
    return y


def reference_moe(dense, x, ids, weights):
    gate, up, down = (part.astype(np.float64) for part in dense)
    y = np.zeros(x.shape)
    for token, row in enumerate(ids):
        for k, expert in enumerate(row):
            if expert < 0:
                continue
            gated = gate[expert] @ x[token]
            hidden = gated / (1 + np.exp(-gated)) * (up[expert] @ x[token])
            y[token] += weights[token, k] * (down[expert] @ hidden)
    return y


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_dequantize_agrees_with_gguf_to_the_bit(native: Native, random_weights, type) -> None:
    packed, dense = random_weights(type, (7, 512))
    found = np.empty_like(dense)
    native.dequantize(type, packed.ctypes.data, found.ctypes.data, dense.size)
    np.testing.assert_array_equal(found, dense)


@pytest.mark.parametrize("tokens", [1, 3, 8, 70])
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_matmul_agrees_with_float64(pool: Pool, random_weights, rng, type, tokens) -> None:
    packed, dense = random_weights(type, (83, 768))
    x = rng.standard_normal((tokens, 768), dtype=np.float32)
    found = matmul(pool, Matrix(packed.ctypes.data, type, 83, 768), x)
    error = relative_error(found, x.astype(np.float64) @ dense.T)
    in_bf16 = tokens == 70 and pool.native.isa in ("avx512bf16", "amx")
    assert error < allowed_error(type, in_bf16=in_bf16)


QUANTISED = [type for type in TYPES if type.name not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
def test_packed_weights_give_the_same_bits_and_come_back(
    native: Native, pool: Pool, random_weights, rng, type
) -> None:
    packed, dense = random_weights(type, (2, 83, 768))
    target = np.zeros_like(packed)
    laid_out = Matrix(target.ctypes.data, type, 83, 768, 2, Layout.PANEL16)
    pool.pack(laid_out, packed.ctypes.data)
    x = rng.standard_normal((2, 3, 768), dtype=np.float32)
    found, expected = (np.full((2, 3, 83), np.nan, dtype=np.float32) for _ in range(2))
    pool.matmul(laid_out, x.ctypes.data, found.ctypes.data, 3)
    plain = Matrix(packed.ctypes.data, type, 83, 768, 2)
    pool.matmul(plain, x.ctypes.data, expected.ctypes.data, 3)
    np.testing.assert_array_equal(found, expected)
    back = np.empty((100, 768), dtype=np.float32)
    native.dequantize_rows(laid_out, 66, 100, back.ctypes.data)
    np.testing.assert_array_equal(back, dense.reshape(166, 768)[66:])


def test_a_matrix_read_from_a_file_is_the_one_packed_from_memory(
    pool: Pool, random_weights, tmp_path
) -> None:
    packed, _ = random_weights(QuantType.Q6_K, (3, 40, 512))
    from_memory, from_file = np.zeros_like(packed), np.zeros_like(packed)
    pool.pack(
        Matrix(from_memory.ctypes.data, QuantType.Q6_K, 40, 512, 3, Layout.PANEL16),
        packed.ctypes.data,
    )
    path = tmp_path / "weights"
    path.write_bytes(b"head" + packed.tobytes())
    target = Matrix(from_file.ctypes.data, QuantType.Q6_K, 40, 512, 3, Layout.PANEL16)
    with path.open("rb") as file:
        pool.read(target, file.fileno(), 4, 0, 40)
        pool.read(target, file.fileno(), 4, 40)
        np.testing.assert_array_equal(from_file, from_memory)
        with pytest.raises(EOFError):
            pool.read(target, file.fileno(), 5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pool.read(target, -1, 0)


def test_rows_between_panels_are_refused_by_a_read(pool: Pool, random_weights, tmp_path) -> None:
    packed, _ = random_weights(QuantType.Q8_0, (32, 32))
    target = Matrix(packed.ctypes.data, QuantType.Q8_0, 32, 32, layout=Layout.PANEL16)
    with pytest.raises(KtopsError) as caught, (tmp_path / "empty").open("wb+") as file:
        pool.read(target, file.fileno(), 0, 8, 24)
    assert caught.value.code == "native-call"


@pytest.mark.parametrize(
    ("types", "experts", "hidden", "inner", "tokens", "top_k"),
    [
        (("Q4_K", "Q4_K", "Q6_K"), 8, 512, 256, 1, 4),
        (("Q4_K", "Q4_K", "Q6_K"), 8, 512, 256, 40, 4),
        (("Q5_K", "Q6_K", "Q5_0"), 3, 256, 96, 5, 2),
        (("Q8_0", "BF16", "F32"), 4, 64, 50, 9, 3),
    ],
)
def test_moe_agrees_with_float64(
    pool: Pool, random_weights, rng, types, experts, hidden, inner, tokens, top_k
) -> None:
    kinds = [QuantType[name] for name in types]
    shapes = [(inner, hidden), (inner, hidden), (hidden, inner)]
    made = [
        random_weights(kind, (experts, *shape)) for kind, shape in zip(kinds, shapes, strict=True)
    ]
    matrices = [
        Matrix(packed.ctypes.data, kind, *shape, experts)
        for (packed, _), kind, shape in zip(made, kinds, shapes, strict=True)
    ]
    x = rng.standard_normal((tokens, hidden), dtype=np.float32)
    ids = rng.integers(-1, experts, (tokens, top_k), dtype=np.int32)
    ids[0, 0] = 0  # at least one expert, so that there is something to compare
    weights = rng.random((tokens, top_k), dtype=np.float32)
    found = moe_forward(pool, matrices, x, ids, weights)
    expected = reference_moe([dense for _, dense in made], x, ids, weights)
    assert relative_error(found, expected) < 3e-4


def test_every_instruction_set_gives_the_same_answer_within_rounding(
    native_build: BuildInfo, native: Native, random_weights, rng, monkeypatch
) -> None:
    packed, _ = random_weights(QuantType.Q4_K, (64, 1024))
    weight = Matrix(packed.ctypes.data, QuantType.Q4_K, 64, 1024)
    x = rng.standard_normal((5, 1024), dtype=np.float32)
    results = []
    for isa in native.isa_available:
        monkeypatch.setenv("KTOPS_ISA", isa)
        capped = load_native(native_build)
        assert capped.isa == isa
        with capped.create_pool([0]) as pool:
            results.append(matmul(pool, weight, x))
    for result in results[1:]:
        assert relative_error(result, results[0]) < 1e-6


def test_an_unknown_instruction_set_is_refused_by_name(
    native_build: BuildInfo, monkeypatch
) -> None:
    monkeypatch.setenv("KTOPS_ISA", "avx1024")
    with pytest.raises(KtopsError) as caught:
        load_native(native_build)
    assert caught.value.code == "unknown-isa"
    assert "KTOPS_ISA" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": 3}, "not supported"),
        ({"cols": 200}, "whole number of blocks"),
        ({"data_ptr": 0}, "null"),
        ({"num_experts": 0}, "shapes"),
    ],
)
def test_bad_arguments_raise_and_name_the_call(pool: Pool, rng, change, words) -> None:
    packed = np.zeros(64 * 144, dtype=np.uint8)
    good = {"data_ptr": packed.ctypes.data, "type": QuantType.Q4_K, "rows": 64, "cols": 256}
    with pytest.raises(KtopsError, match=words) as caught:
        matmul(pool, Matrix(**(good | change)), np.zeros((1, 256), dtype=np.float32))
    assert caught.value.code == "native-call"
    assert "matmul of 1 tokens" in caught.value.message


def test_an_expert_id_out_of_range_raises(pool: Pool) -> None:
    packed = np.zeros(2 * 32 * 34, dtype=np.uint8)
    matrix = Matrix(packed.ctypes.data, QuantType.Q8_0, 32, 32, 2)
    x = np.zeros((1, 32), dtype=np.float32)
    ids = np.array([[2]], dtype=np.int32)
    with pytest.raises(KtopsError, match="expert id"):
        moe_forward(pool, [matrix] * 3, x, ids, np.ones((1, 1), dtype=np.float32))


def test_callers_on_several_threads_get_their_own_answers(pool: Pool, random_weights, rng) -> None:
    packed, dense = random_weights(QuantType.Q8_0, (96, 256))
    weight = Matrix(packed.ctypes.data, QuantType.Q8_0, 96, 256)
    inputs = [rng.standard_normal((n, 256), dtype=np.float32) for n in (1, 2, 3, 4)]
    errors: list[float] = []

    def work(x: np.ndarray) -> None:
        for _ in range(50):
            errors.append(relative_error(matmul(pool, weight, x), x @ dense.T))  # noqa: PERF401

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 200
    assert max(errors) < 1e-4


def test_a_closed_pool_says_so(native: Native) -> None:
    pool = native.create_pool([0, 1])
    pool.close()
    pool.close()
    with pytest.raises(KtopsError) as caught:
        matmul(pool, Matrix(1, QuantType.F32, 1, 1), np.zeros((1, 1), dtype=np.float32))
    assert caught.value.code == "pool-closed"


def test_a_pool_needs_a_cpu(native: Native) -> None:
    with pytest.raises(KtopsError, match="0 threads"):
        native.create_pool([])


def test_a_buffer_is_zeroed_writable_memory(native: Native) -> None:
    with native.alloc(3 << 20) as buffer:
        array = np.frombuffer(buffer.view, dtype=np.uint8)
        assert array.ctypes.data == buffer.address
        assert len(array) == buffer.num_bytes == 3 << 20
        assert not array.any()
        array[-1] = 7
        assert buffer.view[-1] == 7


def test_what_was_made_from_a_buffer_outlives_it(native: Native) -> None:
    buffer = native.alloc(1 << 20)
    array = np.frombuffer(buffer.view, dtype=np.uint8)
    buffer.free()
    del buffer
    array[:] = 5
    assert array.sum() == 5 << 20


def test_more_memory_than_there_is_ends_in_a_clear_error(native: Native) -> None:
    with pytest.raises(KtopsError) as caught:
        native.alloc(1 << 60)
    assert caught.value.code == "out-of-memory"
    assert caught.value.exit_status == 4
