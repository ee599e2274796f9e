"""Write GGUF bytes by hand, valid or not: what a real writer refuses to produce."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f",
    BOOL: "<B", U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: object) -> bytes:
    """A typed value: its type number, then the value."""
    body = string(value) if kind == STRING else struct.pack(_FORMATS[kind], value)
    return struct.pack("<I", kind) + body


def array(kind: int, values: Sequence[object], length: int | None = None) -> bytes:
    """A typed array; `length` overrides the count that is written."""
    count = len(values) if length is None else length
    if kind == STRING:
        body = b"".join(map(string, values))
    else:
        body = struct.pack(f"<{len(values)}{_FORMATS[kind][1]}", *values)
    return struct.pack("<IIQ", ARRAY, kind, count) + body


@dataclass(frozen=True)
class Tensor:
    """One row of the tensor table; `dims` are in GGUF's order, the contiguous one first."""

    name: str
    dims: tuple[int, ...] = (32,)
    type: int = 0
    offset: int = 0

    def encode(self) -> bytes:
        dims = struct.pack(f"<{len(self.dims)}Q", *self.dims)
        count = struct.pack("<I", len(self.dims))
        return string(self.name) + count + dims + struct.pack("<IQ", self.type, self.offset)


@dataclass(frozen=True)
class RawGguf:
    """A file's parts. `pairs` are (key, encoded value); counts default to what is there."""

    pairs: Sequence[tuple[str, bytes]] = (("general.architecture", scalar(STRING, "deepseek2")),)
    tensors: Sequence[Tensor] = (Tensor("a"),)
    data: bytes = bytes(128)
    version: int = 3
    magic: bytes = b"GGUF"
    num_tensors: int | None = None
    num_pairs: int | None = None
    alignment: int = 32
    byte_order: str = "<"

    def encode(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_pairs = len(self.pairs) if self.num_pairs is None else self.num_pairs
        header = self.magic + struct.pack(
            f"{self.byte_order}IQQ", self.version, num_tensors, num_pairs
        )
        header += b"".join(string(key) + value for key, value in self.pairs)
        header += b"".join(tensor.encode() for tensor in self.tensors)
        return header + bytes(-len(header) % self.alignment) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encode())
        return path


def r1_sized(num_tokens: int = 129_280, num_merges: int = 127_741, layers: int = 61) -> RawGguf:
    """A header of DeepSeek-R1's dimensions (1,025 tensors or more), with tiny tensors."""
    tokens = [f"\u0120token{index}" for index in range(num_tokens)]
    merges = [f"\u0120to ken{index}" for index in range(num_merges)]
    pairs = [
        ("general.architecture", scalar(STRING, "deepseek2")),
        ("general.name", scalar(STRING, "DeepSeek R1 sized")),
        ("deepseek2.block_count", scalar(U32, layers)),
        ("tokenizer.ggml.model", scalar(STRING, "gpt2")),
        ("tokenizer.ggml.pre", scalar(STRING, "deepseek-v3")),
        ("tokenizer.ggml.tokens", array(STRING, tokens)),
        ("tokenizer.ggml.token_type", array(I32, [1] * num_tokens)),
        ("tokenizer.ggml.merges", array(STRING, merges)),
    ]
    names = [f"blk.{layer}.tensor_{index}.weight" for layer in range(layers) for index in range(17)]
    tensors = [Tensor(name, (32,), 0, 128 * index) for index, name in enumerate(names)]
    return RawGguf(pairs, tensors, bytes(128 * len(tensors)))
