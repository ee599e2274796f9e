"""The CPU's experts of a prompt: their rows come from the GPU, are computed beside, go back."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.moe.expert_stream import ExpertStream
from ktops_engine.moe.staging import Floats, Ids
from ktops_engine.native.load import Matrix


class CpuPart:
    """The CPU's experts of one call, under way."""

    def __init__(
        self,
        stream: ExpertStream,
        matrices: tuple[Matrix, Matrix, Matrix],
        x: torch.Tensor,
        tokens: npt.NDArray[np.int64],
        ids: Ids,
        weights: Floats,
    ) -> None:
        """ids, weights: of `tokens`, the only rows of x that are needed."""
        self._staging = stream.staging
        self._pool = stream.pool
        self._matrices = matrices
        self._tokens = torch.from_numpy(tokens).to(x.device)
        self._ids, self._weights = ids, weights
        self._x, self._arrived = stream.staging.to_host(x, self._tokens)
        self._y = stream.staging.host_rows("y", self._x.shape)
        self._running = stream.submit(self._compute)

    def _compute(self) -> float:
        """On the thread beside: the experts' products. Returns seconds, the way of x included."""
        started = perf_counter()
        self._arrived()
        num_tokens, top_k = self._ids.shape
        self._pool.moe_forward(
            *self._matrices,
            self._x.data_ptr(), self._ids.ctypes.data, self._weights.ctypes.data,
            self._y.data_ptr(), num_tokens, top_k,
        )  # fmt: skip
        return perf_counter() - started

    def add_to(self, y: torch.Tensor) -> float:
        """Wait, and add the result to y. Returns the seconds it took to compute."""
        seconds = self._running.result()
        y.index_add_(0, self._tokens, self._staging.from_host(self._y))
        return seconds
