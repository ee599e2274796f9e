"""The reference dequantisation, by the `gguf` package. Slow; for tests and tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ktops_engine.gguf.types import QuantType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def dequantize(
    type: QuantType,
    data: bytes | bytearray | memoryview | npt.NDArray[np.uint8],
    shape: Sequence[int],
) -> npt.NDArray[np.float32]:
    """Turn raw blocks into float32 of `shape` (row-major). ValueError if the sizes differ."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as reference

    raw = np.frombuffer(data, dtype=np.uint8)
    count = int(np.prod(shape, dtype=np.int64))
    if raw.size != type.nbytes(count):
        raise ValueError(f"{raw.size} bytes are not {count} weights of {type.name}")
    if type is QuantType.BF16:
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if type in (QuantType.F32, QuantType.F16):
        floats = raw.view(np.float32 if type is QuantType.F32 else np.float16)
        return floats.astype(np.float32).reshape(shape)
    # As one row: the package works through rows sixteen at a time, in Python.
    values: npt.NDArray[np.float32] = reference(raw.reshape(1, -1), GGMLQuantizationType(int(type)))
    return values.reshape(shape)
