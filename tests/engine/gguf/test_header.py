"""Every check on a header, one damaged file at a time."""

from pathlib import Path

import numpy as np
import pytest
from raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    STRING,
    U8,
    U32,
    U64,
    RawGguf,
    Tensor,
    array,
    scalar,
    string,
)

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import open_gguf
from ktops_engine.gguf.header import MAX_KEYS, MAX_TENSORS
from ktops_engine.gguf.values import MAX_ARRAY_LENGTH, MAX_STRING_BYTES, MAX_STRINGS

ARCHITECTURE = ("general.architecture", scalar(STRING, "deepseek2"))


def failure(path: Path) -> KtopsError:
    with pytest.raises(KtopsError) as caught:
        open_gguf(path)
    assert caught.value.hint
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty (0 bytes)"),
        (bytes(4096), "it holds zeros"),
        (b"<!DOCTYPE html>\n<html>", "a web page (HTML)"),
        (b"\n  <HTML><body>", "a web page (HTML)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 43991000064\n",
            "a git-lfs pointer of 74 bytes that stands for a file of 43991000064 bytes",
        ),
        ("Repository not found. 抱歉 ".encode() * 40, 'a text file that begins "Repository not'),
        (b'{\n  "error": 401}', 'a text file that begins "{ "error": 401}"'),
        (b"GG", 'a text file that begins "GG"'),
        (b"PK\x03\x04" + bytes(60), "a zip archive or a PyTorch checkpoint"),
        (b'\x40\0\0\0\0\0\0\0{"a":{}}', "a safetensors file"),
        (b"tjgg\x03\0\0\0", "the GGML format of before August 2023"),
        (b"\x1f\x8b\x08\0\0\0", "a compressed archive"),
        (b"\x7fELF\x02\x01\xff\xfe", "its first bytes are 7f 45 4c 46"),
    ],
)
def test_a_file_that_is_no_gguf_is_named_for_what_it_is(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    error = failure(path)
    assert error.code == "gguf-bad-magic"
    assert expected in error.message


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (RawGguf(version=1), "version 1"),
        (RawGguf(version=4), "version 4"),
        (RawGguf(byte_order=">"), "big-endian"),
    ],
)
def test_other_versions_and_byte_orders_are_refused(
    tmp_path: Path, raw: RawGguf, expected: str
) -> None:
    error = failure(raw.write(tmp_path / "model.gguf"))
    assert error.code == "gguf-unsupported-version"
    assert expected in error.message


@pytest.mark.parametrize("version", [2, 3])
def test_versions_two_and_three_open(tmp_path: Path, version: int) -> None:
    model = open_gguf(RawGguf(version=version).write(tmp_path / "model.gguf"))
    assert model.architecture == "deepseek2"
    assert model.name is None
    assert model.total_bytes == 128


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    pairs = [
        ARCHITECTURE,
        ("u8", scalar(U8, 7)),
        ("i32", scalar(I32, -5)),
        ("u64", scalar(U64, 1 << 40)),
        ("f32", scalar(F32, 0.5)),
        ("f64", scalar(F64, 1e300)),
        ("yes", scalar(BOOL, 1)),
        ("text", scalar(STRING, "阶乘 😀")),
        ("texts", array(STRING, ["a", "", "é"])),
        ("numbers", array(I32, [1, -2, 3])),
        ("flags", array(BOOL, [1, 0])),
        ("empty", array(STRING, [])),
    ]
    metadata = open_gguf(RawGguf(pairs).write(tmp_path / "model.gguf")).metadata
    assert list(metadata) == [key for key, _ in pairs]
    assert metadata["u8"] == 7
    assert metadata["i32"] == -5
    assert metadata["u64"] == 1 << 40
    assert metadata["f32"] == 0.5
    assert metadata["f64"] == 1e300
    assert metadata["yes"] is True
    assert metadata["text"] == "阶乘 😀"
    assert metadata["texts"] == ["a", "", "é"]
    assert metadata["texts"] is metadata["texts"]
    np.testing.assert_array_equal(metadata["numbers"], [1, -2, 3])
    np.testing.assert_array_equal(metadata["flags"], [True, False])
    assert metadata["empty"] == []
    assert metadata.get("absent") is None
    assert "absent" not in metadata


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (RawGguf(num_tensors=MAX_TENSORS + 1), "claims 65537 tensors"),
        (RawGguf(num_pairs=MAX_KEYS + 1), "16385 metadata keys"),
        (RawGguf([ARCHITECTURE, ARCHITECTURE]), "'general.architecture' appears twice"),
        (RawGguf([("k", b"\x0d\0\0\0")]), "k has the unknown value type 13"),
        (RawGguf([("k", scalar(BOOL, 2))]), "k is a boolean with the value 2"),
        (RawGguf([("k", scalar(STRING, b"\xff"))]), "the value of k is not UTF-8"),
        (
            RawGguf([("k", b"\x08\0\0\0" + (MAX_STRING_BYTES + 1).to_bytes(8, "little"))]),
            "the value of k claims to be 67108865 bytes",
        ),
        (RawGguf([("x" * 70_000, scalar(U8, 1))]), "metadata key 0 claims to be 70000 bytes"),
        (RawGguf([("k", array(U8, [], MAX_ARRAY_LENGTH + 1))]), "an array of 16777217 elements"),
        (RawGguf([("k", array(STRING, [], MAX_STRINGS + 1))]), "past 4194304 strings"),
        (
            RawGguf([("k", scalar(U32, ARRAY)[4:] + scalar(U32, ARRAY)[4:] + bytes(8))]),
            "k is an array of the unsupported value type 9",
        ),
        (RawGguf([("general.architecture", scalar(U8, 1))]), "no general.architecture"),
        (RawGguf([]), "no general.architecture"),
        (RawGguf(tensors=[], data=b""), "holds no tensors"),
        (RawGguf([ARCHITECTURE, ("general.alignment", scalar(U32, 48))]), "not a power of two"),
        (RawGguf([ARCHITECTURE, ("general.alignment", scalar(U32, 0))]), "not a power of two"),
        (RawGguf([ARCHITECTURE, ("general.alignment", scalar(STRING, "32"))]), "general.alignment"),
        (RawGguf(tensors=[Tensor("a", ())]), "tensor 'a' has 0 dimensions"),
        (RawGguf(tensors=[Tensor("a", (1,) * 5)]), "tensor 'a' has 5 dimensions"),
        (RawGguf(tensors=[Tensor("a", (0, 4))]), "tensor 'a' has the shape [4, 0]"),
        (RawGguf(tensors=[Tensor("a", (1 << 40, 1 << 40))]), "tensor 'a' has the shape"),
        (RawGguf(tensors=[Tensor("a", (100,), type=12)]), "100 weights, not a multiple of Q4_K's"),
        (RawGguf(tensors=[Tensor("a", (8, 4), type=2)]), "8 weights, not a multiple of Q4_0's"),
        (RawGguf(tensors=[Tensor("a", offset=8)]), "begins at 8, not aligned to 32"),
        (RawGguf(tensors=[Tensor("a"), Tensor("a", offset=128)]), "tensor 'a' appears twice"),
        (RawGguf(tensors=[Tensor("a"), Tensor("b", offset=96)]), "'a' and 'b' overlap"),
    ],
)
def test_a_header_that_contradicts_itself_is_damage(
    tmp_path: Path, raw: RawGguf, expected: str
) -> None:
    error = failure(raw.write(tmp_path / "model.gguf"))
    assert error.code == "gguf-corrupt"
    assert expected in error.message


def test_text_that_is_not_utf8_in_an_array_fails_when_it_is_asked_for(tmp_path: Path) -> None:
    raw = RawGguf([ARCHITECTURE, ("tokens", array(STRING, [b"ok", b"\xff"]))])
    metadata = open_gguf(raw.write(tmp_path / "model.gguf")).metadata
    with pytest.raises(KtopsError, match="string 1 of tokens is not UTF-8") as caught:
        metadata["tokens"]
    assert caught.value.code == "gguf-corrupt"


def test_the_alignment_key_moves_the_data(tmp_path: Path) -> None:
    pairs = [ARCHITECTURE, ("general.alignment", scalar(U32, 256))]
    model = open_gguf(RawGguf(pairs, alignment=256).write(tmp_path / "model.gguf"))
    assert model.tensors["a"].offset % 256 == 0


@pytest.mark.parametrize(
    ("number", "name"),
    [(23, "IQ4_XS"), (10, "Q2_K"), (39, "MXFP4"), (139, "IQ4_K"), (77, "type 77")],
)
def test_an_unsupported_type_is_refused_by_tensor_and_type(
    tmp_path: Path, number: int, name: str
) -> None:
    tensors = [Tensor("a"), Tensor("blk.0.ffn_down_exps.weight", (256,), number, 128)]
    error = failure(RawGguf(tensors=tensors).write(tmp_path / "model.gguf"))
    assert error.code == "gguf-unsupported-type"
    assert f"blk.0.ffn_down_exps.weight in {tmp_path / 'model.gguf'} has the type {name}," in (
        error.message
    )
    assert "Q4_K_M" in error.hint


def test_a_file_cut_in_its_data_says_how_much_is_missing(tmp_path: Path) -> None:
    path = RawGguf(tensors=[Tensor("a", (1024, 1024))]).write(tmp_path / "model.gguf")
    size = path.stat().st_size
    error = failure(path)
    assert error.code == "gguf-truncated"
    assert f"has {size:,} bytes" in error.message
    assert f"{4 * 1024 * 1024 - 128:,} bytes are missing" in error.message


def test_a_file_cut_anywhere_in_its_header_is_truncated(tmp_path: Path) -> None:
    pairs = [ARCHITECTURE, ("tokens", array(STRING, ["a", "bc"])), ("n", array(I32, [1, 2]))]
    whole = RawGguf(pairs).encode()
    path = tmp_path / "model.gguf"
    for length in range(4, len(whole) - 128):
        path.write_bytes(whole[:length])
        assert failure(path).code == "gguf-truncated"


def test_a_string_longer_than_the_file_is_truncation(tmp_path: Path) -> None:
    raw = RawGguf([("k", b"\x08\0\0\0" + (1 << 20).to_bytes(8, "little") + string("x"))])
    assert failure(raw.write(tmp_path / "model.gguf")).code == "gguf-truncated"
