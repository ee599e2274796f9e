"""Times calls of an expert layer, in turns with plain reads of the same memory by the same threads.

Every call takes other experts at random. The reads are a product of 8-bit weights with one token of
zeros over the same pages: the kernel does little besides reading.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktops_engine.bench.accuracy import relative_l2
from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import LayerShape
from ktops_engine.gguf import QuantType
from ktops_engine.native.load import Matrix, Pool

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MIN_CALLS = 5
MAX_READ_BYTES = 1 << 30
MIN_READ_BYTES = 64 << 20  # less than this lies in caches, and says nothing of the memory
READ_COLS = 4096


@dataclass(frozen=True)
class LayerTiming:
    """Medians over the calls. Rates in bytes/s and FLOP/s; `read_rate` and `share` are None for a
    layer that caches hold."""

    num_tokens: int
    num_calls: int
    seconds: float
    touched_rate: float
    read_rate: float | None
    share: float | None
    flops: float
    relative_l2: float


class LayerCall:
    """The arguments of one call: activations stay, experts are drawn anew."""

    def __init__(self, shape: LayerShape, num_tokens: int, rng: np.random.Generator) -> None:
        import numpy as np

        self._shape, self._rng = shape, rng
        self.num_tokens = num_tokens
        self.x = rng.standard_normal((num_tokens, shape.hidden_size), dtype=np.float32)
        self.y = np.zeros_like(self.x)
        top_k = shape.num_experts_per_tok
        self.weights = np.full((num_tokens, top_k), 1 / top_k, dtype=np.float32)
        self.ids = self._draw()

    def _draw(self) -> npt.NDArray[np.int32]:
        import numpy as np

        shape = self._shape
        order = self._rng.random((self.num_tokens, shape.num_experts)).argsort(axis=1)
        return np.ascontiguousarray(order[:, : shape.num_experts_per_tok], dtype=np.int32)

    def redraw(self) -> int:
        """Choose other experts; returns how many different ones."""
        import numpy as np

        self.ids = self._draw()
        return len(np.unique(self.ids))

    def run(self, layer: ExpertLayer, pool: Pool) -> float:
        """Seconds of the call."""
        start = time.perf_counter()
        pool.moe_forward(
            layer.gate,
            layer.up,
            layer.down,
            self.x.ctypes.data,
            self.ids.ctypes.data,
            self.weights.ctypes.data,
            self.y.ctypes.data,
            self.num_tokens,
            self._shape.num_experts_per_tok,
        )
        return time.perf_counter() - start

    def relative_l2(self, layer: ExpertLayer) -> float:
        """The error of the last token of the last call of `layer`."""
        last = self.num_tokens - 1
        ids, weights = self.ids[last], self.weights[last]
        return relative_l2(layer, self.x[last], ids, weights, self.y[last])


class Reader:
    """Plain reads of a layer's memory; of other memory where rows have NUMA nodes, because those of
    the reads are not the layer's."""

    def __init__(self, layer: ExpertLayer, pool: Pool) -> None:
        import numpy as np

        buffer = layer.largest_buffer
        row_bytes = QuantType.Q8_0.nbytes(READ_COLS)
        rows = min(buffer.num_bytes, MAX_READ_BYTES) // row_bytes
        self.num_bytes = rows * row_bytes
        if pool.nodes:
            buffer = layer.native.alloc(self.num_bytes)
        self._buffer = buffer  # kept alive
        self._weight = Matrix(buffer.address, QuantType.Q8_0, rows, READ_COLS)
        if pool.nodes:
            pool.place(buffer, self._weight)
        self._x = np.zeros(READ_COLS, dtype=np.float32)
        self._y = np.empty(rows, dtype=np.float32)

    def rate(self, pool: Pool) -> float:
        """Bytes/s of one pass."""
        start = time.perf_counter()
        pool.matmul(self._weight, self._x.ctypes.data, self._y.ctypes.data, num_tokens=1)
        return self.num_bytes / (time.perf_counter() - start)


def time_layer(pool: Pool, layer: ExpertLayer, num_tokens: int, *, seconds: float) -> LayerTiming:
    """Time calls of `num_tokens` tokens for about `seconds`, at least MIN_CALLS of them."""
    import numpy as np

    call = LayerCall(layer.shape, num_tokens, np.random.default_rng(1))
    call.run(layer, pool)  # first touches of activations and scratch memory
    reader = Reader(layer, pool) if layer.largest_buffer.num_bytes >= MIN_READ_BYTES else None
    times: list[float] = []
    touched: list[float] = []
    reads: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_CALLS or time.perf_counter() < end:
        num_experts = call.redraw()
        if reader is not None:
            reads.append(reader.rate(pool))
        times.append(call.run(layer, pool))
        touched.append(num_experts * layer.shape.expert_bytes / times[-1])
    middle = statistics.median(times)
    return LayerTiming(
        num_tokens=num_tokens,
        num_calls=len(times),
        seconds=middle,
        touched_rate=statistics.median(touched),
        read_rate=statistics.median(reads) if reads else None,
        share=statistics.median(_ratios(touched, reads)) if reads else None,
        flops=layer.shape.flops(num_tokens) / middle,
        relative_l2=call.relative_l2(layer),
    )


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Keep the calling thread on `cpu`: a pool pins its workers only, and a caller that wanders
    onto a worker's core halves both."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
