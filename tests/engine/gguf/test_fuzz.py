"""Hostile bytes: whatever a file holds, opening it gives a model or a KtopsError."""

import math
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_gguf import BOOL, F32, I32, STRING, U32, U64, RawGguf, Tensor, array, scalar

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import open_gguf

WHOLE = RawGguf(
    [
        ("general.architecture", scalar(STRING, "deepseek2")),
        ("general.alignment", scalar(U32, 64)),
        ("general.name", scalar(STRING, "名")),
        ("deepseek2.block_count", scalar(U64, 4)),
        ("flag", scalar(BOOL, 1)),
        ("rate", scalar(F32, 0.5)),
        ("tokenizer.ggml.tokens", array(STRING, ["a", "bc", "阶"])),
        ("tokenizer.ggml.token_type", array(I32, [1, 2, 3])),
    ],
    [
        Tensor("token_embd.weight", (256, 2), 12, 0),
        Tensor("norm", (32,), 0, 320),
        Tensor("experts", (32, 2, 3), 8, 448),
    ],
    bytes(1024),
    alignment=64,
).encode()
HEADER_SIZE = len(WHOLE) - 1024

BYTES_CHANGED = st.lists(
    st.tuples(st.integers(0, HEADER_SIZE), st.integers(0, 255)), min_size=1, max_size=6
)
WORDS = st.sampled_from([0, 1, 7, 8, 9, 0xFF, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 63, 2**64 - 1])


def open_bytes(path: Path, content: bytes) -> None:
    """Open, decode everything and read everything; only KtopsError may come out."""
    path.write_bytes(content)
    error = None
    try:
        model = open_gguf(path)
        for key in model.metadata:
            _ = model.metadata[key]
        for name, info in model.tensors.items():
            assert model.read(name).nbytes == info.nbytes <= len(content)
            assert info.type.nbytes(math.prod(info.shape)) == info.nbytes
    except KtopsError as caught:
        error = caught
    assert error is None or (error.code.startswith("gguf-") and error.message and error.hint)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.gguf"


ours = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ours
@given(BYTES_CHANGED)
def test_changed_bytes_never_crash(path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE)
    for position, value in changes:
        content[position] = value
    open_bytes(path, bytes(content))


@ours
@given(st.integers(0, HEADER_SIZE - 8), WORDS)
def test_hostile_lengths_and_counts_never_crash(path: Path, position: int, word: int) -> None:
    content = bytearray(WHOLE)
    content[position : position + 8] = word.to_bytes(8, "little")
    open_bytes(path, bytes(content))


@ours
@given(st.integers(0, len(WHOLE)), st.binary(max_size=64))
def test_cut_and_spliced_files_never_crash(path: Path, length: int, tail: bytes) -> None:
    open_bytes(path, WHOLE[:length] + tail)


@ours
@given(st.binary(max_size=600))
def test_random_bytes_after_the_magic_never_crash(path: Path, body: bytes) -> None:
    open_bytes(path, b"GGUF\x03\0\0\0" + body)


def test_every_single_byte_may_be_wrong(path: Path) -> None:
    for position in range(HEADER_SIZE):
        for value in (0xFF, WHOLE[position] ^ 1):
            content = bytearray(WHOLE)
            content[position] = value
            open_bytes(path, bytes(content))


def test_hostile_lengths_take_no_memory(path: Path) -> None:
    pairs = [("k", b"\x08\0\0\0" + (60 << 20).to_bytes(8, "little"))]
    tracemalloc.start()
    try:
        open_bytes(path, RawGguf(pairs).encode())
        open_bytes(path, RawGguf([("k", array(U64, [], 1 << 24))]).encode())
        open_bytes(path, RawGguf(num_tensors=1 << 16, num_pairs=1 << 14).encode())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
