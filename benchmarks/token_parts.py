"""Where the milliseconds of a token go that GPU and CPU decode together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

REPLAYS = 40


class TokenParts:
    """Of a loaded hybrid model's single sequence, once it has decoded some tokens."""

    def __init__(self, llm) -> None:
        self._llm = llm
        self._model = llm._loaded.model
        self._graph = llm._runner._graphs[1]
        self._replays: list[float] = []
        self._before = llm.stats().experts

    @staticmethod
    def can_tell(llm) -> bool:
        """Whether the model hands experts to the CPU, in graphs."""
        graphs = getattr(llm._runner, "_graphs", {})
        return 1 in graphs and llm._loaded.model._handoff is not None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within, tokens are decoded, one request at a time."""
        replay = self._graph.replay

        def timed(meanwhile: Callable[[], None]):
            started = time.perf_counter()
            result = replay(meanwhile)
            self._replays.append(time.perf_counter() - started)
            return result

        with patch.object(self._graph, "replay", timed):
            yield

    def of(self, token_seconds: float) -> dict[str, float]:
        """The parts of a token that took so long on average; call when nothing runs.

        "gpu": launch, GPU and wait without experts in RAM; "beside": the shared experts, which the
        GPU computes while it waits; "handoff": what is left of a replay without "gpu" and the CPU's
        experts, by layer; "host": what is between replays.
        """
        after = self._llm.stats().experts
        tokens = len(self._replays)
        experts_ms = 1e3 * (after.seconds - self._before.seconds) / tokens
        replay_ms = 1e3 * statistics.fmean(self._replays)
        gpu_ms = self._gpu_ms(with_shared=False)
        num_layers = self._model._handoff.num_layers
        return {
            "experts_ms": experts_ms,
            "gpu_ms": gpu_ms,
            "beside_ms": self._gpu_ms(with_shared=True) - gpu_ms,
            "handoff_us_a_layer": 1e3 * (replay_ms - experts_ms - gpu_ms) / num_layers,
            "host_ms": 1e3 * token_seconds - replay_ms,
            "expert_gb": (after.num_bytes - self._before.num_bytes) / tokens / 1e9,
        }

    def _gpu_ms(self, *, with_shared: bool) -> float:
        """A replay of a graph in which nobody asks the CPU for anything."""
        import torch

        from ktops_engine.decode_graph import DecodeGraph
        from ktops_engine.models.deepseek2_gpu import ExpertLayer
        from ktops_engine.moe.handoff import Handoff

        def nothing(*args: object) -> None:
            pass

        silent = patch.multiple(Handoff, post=nothing, take=nothing, serve=nothing)
        shared = ExpertLayer._add_shared if with_shared else nothing
        times = []
        with torch.inference_mode(), silent, patch.object(ExpertLayer, "_add_shared", shared):
            graph = DecodeGraph(self._model, self._llm._runner._cache, 1)
            for _ in range(REPLAYS):
                started = time.perf_counter()
                graph.replay(nothing)
                times.append(time.perf_counter() - started)
        return 1e3 * statistics.median(times)
