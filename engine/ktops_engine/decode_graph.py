"""One token for each of some sequences, captured as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ktops_engine.kernels import argmax
from ktops_engine.kv_cache import LatentCache
from ktops_engine.models.deepseek2_gpu import HybridModel
from ktops_engine.sampler import Best
from ktops_engine.step_tensors import StepTensors


class DecodeGraph:
    """All that the GPU computes of the model, launched at once; the CPU answers while it runs."""

    def __init__(self, model: HybridModel, cache: LatentCache, num_sequences: int) -> None:
        self._model = model
        self._stream = torch.cuda.current_stream(model.device)
        self.tensors = StepTensors(model, cache, num_sequences, num_sequences)
        step = self.tensors.step((1,) * num_sequences, (0,) * num_sequences)
        # Once layer by layer: Triton compiles and torch's libraries take their work memory, neither
        # of which may happen while a graph is captured.
        counted = model.expert_counts.clone()
        out = model.decode(step, cache, is_captured=False)
        model.expert_counts.copy_(counted)  # nobody asked for these tokens
        self._keys = argmax.new_keys(out) if model.tail is None else None
        self._last(out)
        torch.cuda.synchronize(model.device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.tensors.send()
            self._out = self._last(model.decode(step, cache, is_captured=True))

    def replay(self, meanwhile: Callable[[], None]) -> tuple[torch.Tensor, Best | None]:
        """Compute what `tensors` hold -> logits [sequences, vocab_size] float32, valid until the
        next replay, and the likeliest tokens; where the model has a tail, x for it on the host, and
        nothing. `meanwhile` is called once the GPU is at work.

        Raises KtopsError, such as "handoff-timeout" when the CPU did not answer in time; after the
        model's `recover` the next replay works.
        """
        self._graph.replay()
        meanwhile()
        self._model.serve_decode()
        self._stream.synchronize()
        self._model.check_decode()
        if self._keys is None:
            return self._out, None
        token_ids, values = argmax.read(self._keys)
        return self._out, Best(token_ids.tolist(), values.tolist())

    def _last(self, out: torch.Tensor) -> torch.Tensor:
        """What a step ends with: the likeliest of its logits, or its x brought to the host."""
        if self._keys is None:
            return self.tensors.back_to_host(out)
        argmax.argmax(out, self._keys)
        return out
