"""Weights on their way from files into memory: from the page cache, from the disk, and stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from resident import resident_bytes

from ktops_engine import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, TensorInfo, dequantize
from ktops_engine.models.pieces import PIECE_BYTES, cut
from ktops_engine.models.random_rows import blocks_of_spread
from ktops_engine.models.shard_file import PAGE_BYTES, ShardFile
from ktops_engine.models.weights import Weights
from ktops_engine.native.load import Matrix, Native, Pool, load_native

MIB = 1 << 20
SHAPES = {  # experts and rows that end within a panel and at its end, in several types
    "norm.weight": (QuantType.F32, (77,)),
    "router.weight": (QuantType.F32, (9, 256)),
    "odd_rows.weight": (QuantType.Q6_K, (37, 256)),
    "odd_experts.weight": (QuantType.Q4_K, (5, 37, 512)),
    "experts.weight": (QuantType.Q4_K, (3, 48, 256)),
    "half.weight": (QuantType.F16, (3, 50)),
    "fallback.weight": (QuantType.Q5_0, (33, 96)),
}


@pytest.fixture(scope="module")
def native(native_build) -> Native:
    return load_native(native_build)


@pytest.fixture(scope="module")
def pool(native: Native) -> Iterator[Pool]:
    with native.create_pool(sorted(os.sched_getaffinity(0))[:2]) as pool:
        yield pool


def model_of(path: Path, shapes, first_offset: int = 37) -> tuple[GgufModel, int]:
    """A model whose tensors lie one after the other in `path`, and the size of that file."""
    tensors, offset = {}, first_offset
    for name, (kind, shape) in shapes.items():
        num_bytes = kind.nbytes(int(np.prod(shape)))
        tensors[name] = TensorInfo(name, shape, kind, 0, offset, num_bytes)
        offset += num_bytes + 5
    total = sum(tensor.nbytes for tensor in tensors.values())
    return GgufModel((path,), None, MappingProxyType(tensors), total, "deepseek2", None), offset


@pytest.fixture
def model(tmp_path: Path) -> tuple[GgufModel, dict[str, np.ndarray]]:
    """Small tensors in a file, and what they are dequantised."""
    path = tmp_path / "weights.bin"
    gguf, size = model_of(path, SHAPES)
    content, expected = np.zeros(size, np.uint8), {}
    for name, info in gguf.tensors.items():
        data = blocks_of_spread(info.type, info.nbytes // info.type.block_bytes, 0.0, 0.1)
        content[info.offset : info.offset + info.nbytes] = data
        expected[name] = dequantize(info.type, data, info.shape)
    path.write_bytes(content.tobytes())
    return gguf, expected


def evict(path: Path) -> bool:
    """Take a file out of the page cache; whether that worked: a memory file system keeps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with ShardFile(path) as shard:
        return not shard.is_cached(0, path.stat().st_size)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("cached", [True, False])
def test_every_tensor_arrives_from_the_page_cache_and_from_the_disk(native, pool, model, cached):
    gguf, expected = model
    if not cached and not evict(gguf.paths[0]):
        pytest.skip("this file system keeps its files in memory")
    weights = Weights(native, gguf, gguf.tensors)
    told = []
    weights.read(pool, told.append)
    for name, values in expected.items():
        np.testing.assert_array_equal(weights.float32(name).numpy(), values, err_msg=name)
    assert min(told) > 0
    assert sum(told) == gguf.total_bytes


def test_reading_from_the_disk_leaves_the_page_cache_alone(native, pool, tmp_path):
    path = tmp_path / "weights.bin"
    gguf, size = model_of(path, {"experts.weight": (QuantType.Q4_K, (4, 1024, 2048))})
    path.write_bytes(bytes(size))
    if not evict(path):
        pytest.skip("this file system keeps its files in memory")
    Weights(native, gguf, gguf.tensors).read(pool, lambda num_bytes: None)
    with ShardFile(path) as shard:
        pages = [shard.is_cached(at, 1) for at in range(0, size, PAGE_BYTES)]
    assert not any(pages)


def test_a_file_system_without_direct_reads_is_read_all_the_same(native, pool, model, monkeypatch):
    gguf, expected = model
    monkeypatch.setattr("ktops_engine.models.shard_file._open_direct", lambda path: None)
    monkeypatch.setattr(ShardFile, "is_cached", lambda self, offset, num_bytes: False)
    weights = Weights(native, gguf, gguf.tensors)
    weights.read(pool, lambda num_bytes: None)
    for name, values in expected.items():
        np.testing.assert_array_equal(weights.float32(name).numpy(), values, err_msg=name)


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_became_shorter_is_named(native, pool, model, monkeypatch, cached):
    gguf, _ = model
    monkeypatch.setattr(ShardFile, "is_cached", lambda self, offset, num_bytes: cached)
    os.truncate(gguf.paths[0], 5000)
    with pytest.raises(KtopsError) as raised:
        Weights(native, gguf, gguf.tensors).read(pool, lambda num_bytes: None)
    assert raised.value.code == "gguf-truncated"


def test_a_file_that_went_away_is_named(native, pool, model):
    gguf, _ = model
    gguf.paths[0].unlink()
    with pytest.raises(KtopsError) as raised:
        Weights(native, gguf, gguf.tensors).read(pool, lambda num_bytes: None)
    assert raised.value.code == "gguf-unreadable"


@pytest.mark.parametrize("way", ["ctrl-c", "error"])
def test_a_load_that_is_stopped_halfway_gives_its_memory_and_its_threads_back(
    native, pool, tmp_path, way
):
    path = tmp_path / "weights.bin"
    shape = (256, 1024, 2048)
    gguf, size = model_of(path, {f"{i}.weight": (QuantType.Q4_K, shape) for i in range(7)})
    path.touch()
    os.truncate(path, size)  # 2 GiB of nothing
    before, files = resident_bytes(), open_files()

    read = []

    def stop(num_bytes) -> None:
        read.append(num_bytes)
        if sum(read) > 512 * MIB:
            if way == "error":
                raise KtopsError("stopped", "stopped")
            os.kill(os.getpid(), signal.SIGINT)

    weights = Weights(native, gguf, gguf.tensors)
    try:
        weights.read(pool, stop)
    except (KeyboardInterrupt, KtopsError):
        assert resident_bytes() > before + 256 * MIB
    else:
        pytest.fail("it was not stopped")
    weights.free()
    assert resident_bytes() < before + 64 * MIB
    assert open_files() == files
    threads = Path("/proc/self/task").glob("*/comm")
    assert not any("shard-reader" in name.read_text() for name in threads)


def test_pieces_cover_a_tensor_and_end_between_panels():
    for rows, experts in ((4096, 64), (37, 4000), (100_001, 1)):
        shape = (experts, rows, 512)
        num_bytes = QuantType.Q4_K.nbytes(int(np.prod(shape)))
        info = TensorInfo("t", shape, QuantType.Q4_K, 0, 0, num_bytes)
        pieces = list(cut(info, Matrix(0, QuantType.Q4_K, rows, 512, experts)))
        assert pieces[0].first_byte == 0
        ends = [piece.first_byte + piece.num_bytes for piece in pieces]
        assert ends[:-1] == [piece.first_byte for piece in pieces[1:]]
        assert ends[-1] == num_bytes
        for piece in pieces:
            target = piece.target
            assert target.rows * target.num_experts * 2 * 144 == piece.num_bytes <= PIECE_BYTES
            assert target.data_ptr == piece.first_byte
        if rows != 37:
            assert all(piece.target.rows % 16 == 0 for piece in pieces[:-1])
