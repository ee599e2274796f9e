"""Weight types and tensor descriptions of GGUF files.

Numbers, block sizes and the layout of the tensor table follow the GGUF specification
(ggml-org/ggml, docs/gguf.md) and `ggml_type` in ggml.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class QuantType(IntEnum):
    """The tensor types the kernels compute with, under GGML's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30

    @property
    def block_size(self) -> int:
        """Weights in one block."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]

    def nbytes(self, n: int) -> int:
        """Bytes of `n` weights; `n` must be a multiple of `block_size` (ValueError otherwise)."""
        blocks, rest = divmod(n, self.block_size)
        if rest:
            raise ValueError(f"{n} weights are not whole {self.name} blocks of {self.block_size}")
        return blocks * self.block_bytes


_BLOCKS = MappingProxyType(
    {
        QuantType.F32: (1, 4),
        QuantType.F16: (1, 2),
        QuantType.Q4_0: (32, 18),
        QuantType.Q5_0: (32, 22),
        QuantType.Q8_0: (32, 34),
        QuantType.Q4_K: (256, 144),
        QuantType.Q5_K: (256, 176),
        QuantType.Q6_K: (256, 210),
        QuantType.BF16: (1, 2),
    }
)

# Names of the other types in circulation, so that a refusal can name what it refuses.
# Numbers from 133 on are ik_llama.cpp's own.
_OTHER_TYPE_NAMES = MappingProxyType(
    {
        3: "Q4_1",
        7: "Q5_1",
        9: "Q8_1",
        10: "Q2_K",
        11: "Q3_K",
        15: "Q8_K",
        16: "IQ2_XXS",
        17: "IQ2_XS",
        18: "IQ3_XXS",
        19: "IQ1_S",
        20: "IQ4_NL",
        21: "IQ3_S",
        22: "IQ2_S",
        23: "IQ4_XS",
        24: "I8",
        25: "I16",
        26: "I32",
        27: "I64",
        28: "F64",
        29: "IQ1_M",
        34: "TQ1_0",
        35: "TQ2_0",
        39: "MXFP4",
        40: "NVFP4",
        137: "IQ2_K",
        138: "IQ3_K",
        139: "IQ4_K",
        140: "IQ5_K",
        141: "IQ6_K",
        144: "IQ4_KS",
        145: "IQ2_KS",
        146: "IQ4_KSS",
        202: "Q4_0_R8",
        208: "Q8_0_R8",
        212: "Q4_K_R4",
        213: "Q5_K_R4",
        214: "Q6_K_R4",
    }
)


def is_supported(number: int) -> bool:
    """Whether a GGML type number is one of `QuantType`."""
    return number in _BLOCKS


def type_name(number: int) -> str:
    """The name of a GGML type number, "type N" when it is not known."""
    if is_supported(number):
        return QuantType(number).name
    return _OTHER_TYPE_NAMES.get(number, f"type {number}")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor's blocks lie.

    `shape` is row-major, the last dimension contiguous (GGUF's dimensions reversed); `shard`
    indexes `GgufModel.paths`; `offset` is absolute in that file; `nbytes` is the size of its
    blocks.
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    shard: int
    offset: int
    nbytes: int
