"""The file of a reference run: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktops_engine.errors import KtopsError
from ktops_engine.evaluate.reference import MAX_HEADER_BYTES, ReferenceHeader, ReferenceReader
from ktops_engine.evaluate.reference_writer import ReferenceWriter

HEADER = ReferenceHeader("m", "scalar", "a" * 64, "b" * 64, 16, 600, 5, 512)


def records(header: ReferenceHeader = HEADER) -> np.ndarray:
    rng = np.random.default_rng(0)
    found = np.zeros(header.num_positions, dtype=header.dtype)
    found["target"] = -rng.random(header.num_positions)
    found["rest"] = -3.0
    found["ids"] = rng.permuted(np.arange(header.vocab_size))[: header.top_k]
    found["top"] = -5.0 * rng.random((header.num_positions, header.top_k))
    return found


def write(path: Path, header: ReferenceHeader = HEADER, body: np.ndarray | None = None) -> bytes:
    with ReferenceWriter(path, 0, replace=True) as writer:
        writer.begin(header)
        writer.write(records(header) if body is None else body)
        writer.commit()
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def sealed(data: bytes) -> bytes:
    """Bytes with a hash that fits, as whoever wants to deceive would write."""
    return data + hashlib.sha256(data).digest()


def headed(body: bytes, version: int = 1, length: int | None = None) -> bytes:
    start = struct.pack("<8sII", b"KTOPSEVL", version, len(body) if length is None else length)
    return start + body


def refusal(path: Path, data: bytes) -> KtopsError:
    path.write_bytes(data)
    with pytest.raises(KtopsError) as caught, ReferenceReader(path) as reader:
        reader.read(reader.header.num_positions)
    assert caught.value.code == "invalid-reference"
    assert caught.value.hint
    return caught.value


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "run.ktops-eval"
    write(path)
    with ReferenceReader(path) as reader:
        assert reader.header == HEADER
        parts = [reader.read(2), reader.read(3)]
    assert np.concatenate(parts).tobytes() == records().tobytes()
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("kept", [0, 4, 8, 16, 40, 5000, -33, -32, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    data = write(tmp_path / "whole")
    refusal(tmp_path / "r", data[:kept])


def test_a_longer_file_is_refused(tmp_path):
    data = write(tmp_path / "whole")
    assert "its header asks for" in refusal(tmp_path / "r", data + b"\0").message


@settings(max_examples=40, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(tmp_path_factory, at, flip):
    folder = tmp_path_factory.mktemp("spoilt")
    data = bytearray(write(folder / "whole"))
    data[int(at * len(data))] ^= flip
    refusal(folder / "r", bytes(data))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_reference_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("noise")
    refusal(folder / "r", data)
    refusal(folder / "r", sealed(headed(data)))


def fields(**changed: object) -> bytes:
    values = json.loads(HEADER.encode()[16:]) | changed
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b"[" * 60000,
        b"1" * 6000,
        fields(surprise=1),
        fields(model=None),
        fields(model=3),
        fields(window="16"),
        fields(window=0),
        fields(window=True),
        fields(window=16.0),
        fields(num_positions=-1),
        fields(num_positions=1 << 62),
        fields(num_positions=(1 << 31) - 1),
        fields(vocab_size=1 << 40),
        fields(top_k=1 << 30),
        fields(top_k=511),
        fields(vocab_size=3),
    ],
    ids=lambda header: header[-40:].decode(),
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, header):
    refusal(tmp_path / "r", sealed(headed(header)))


def test_a_header_too_large_and_another_version_are_refused(tmp_path):
    large = headed(b"", length=MAX_HEADER_BYTES + 1) + b" " * 100
    assert "too large" in refusal(tmp_path / "r", sealed(large)).message
    later = headed(fields(), version=2)
    assert "version 2, known is 1" in refusal(tmp_path / "r", sealed(later)).message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", 600),
        ("ids", 0xFFFFFFFF),
        ("top", np.nan),
        ("top", 0.5),
        ("top", -np.inf),
        ("target", np.nan),
        ("target", 1.0),
        ("rest", np.inf),
        ("rest", -np.inf),
        ("rest", -1e300),
    ],
)
def test_records_that_no_run_writes_are_refused_though_the_hash_fits(tmp_path, name, value):
    body = records()
    body[name][3] = value
    refusal(tmp_path / "r", write(tmp_path / "whole", body=body))


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(KtopsError) as caught:
            ReferenceReader(path)
        assert caught.value.code == "invalid-reference"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_early_leaves_nothing(tmp_path, error):
    def run() -> None:
        with ReferenceWriter(tmp_path / "r", 0) as writer:
            writer.begin(HEADER)
            writer.write(records()[:2])
            raise error

    with pytest.raises(error):
        run()
    with ReferenceWriter(tmp_path / "r", 0) as writer:
        writer.begin(HEADER)
    assert names(tmp_path) == []


def test_what_exists_is_replaced_only_when_that_is_wanted(tmp_path):
    path = tmp_path / "r"
    path.write_text("old")
    with pytest.raises(KtopsError) as caught, ReferenceWriter(path, 0):
        pass
    assert caught.value.code == "reference-exists"
    with ReferenceWriter(path, 0, replace=True) as writer:
        writer.begin(HEADER)
    assert path.read_text() == "old"
    write(path)
    assert names(tmp_path) == ["r"]
    with pytest.raises(KtopsError), ReferenceWriter(tmp_path, 0, replace=True):
        pass


def test_what_came_up_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "r"
    with ReferenceWriter(path, 0) as writer:
        writer.begin(HEADER)
        path.write_text("another run's")
        with pytest.raises(KtopsError) as caught:
            writer.commit()
    assert caught.value.code == "reference-exists"
    assert path.read_text() == "another run's"
    assert names(tmp_path) == ["r"]


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path, monkeypatch):
    with pytest.raises(KtopsError) as caught, ReferenceWriter(tmp_path / "absent" / "r", 0):
        pass
    assert caught.value.code == "reference-not-written"
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    with pytest.raises(KtopsError, match="takes 6 MiB, and 5 MiB are free") as caught:
        ReferenceWriter(tmp_path / "r", (5 << 20) + 1).__enter__()
    assert caught.value.exit_status == 4
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_is_said_and_nothing_is_left():
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full")
    writer = ReferenceWriter(Path("r"), 0)
    writer._file = path.open("wb", buffering=0)
    with pytest.raises(KtopsError, match="No space left") as caught:
        writer.begin(HEADER)
    writer._file.close()
    assert caught.value.code == "reference-not-written"
