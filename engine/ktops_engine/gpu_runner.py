"""Runs batches on a GPU and the CPU: decodes replay a graph, prompts run layer by layer.

What the GPU has no room for, the last layers and the head, follows on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ktops_engine.decode_graph import DecodeGraph
from ktops_engine.errors import KtopsError
from ktops_engine.gpu_memory import compute_within
from ktops_engine.kept_counts import CountKeeper
from ktops_engine.kernels import argmax
from ktops_engine.kernels.launch import compile_launches
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.kv_cache import LatentCache
from ktops_engine.models.deepseek2_gpu import GpuStep, HybridModel
from ktops_engine.runner import step_input
from ktops_engine.sampler import Sampler
from ktops_engine.stats import ExpertTraffic
from ktops_engine.step_tensors import StepTensors
from ktops_engine.types import Batch, Request, Sampled

logger = logging.getLogger(__name__)

# Prompts that use every form of the kernels: few tokens, many, and few to many for an expert.
WARM_UP_TOKENS = (5, 32, 512, 2048)

# Kernels that are compiled at once: more would wait for Python's lock, each with its memory.
MAX_COMPILING = 16


class GpuRunner:
    """All that every token uses on the GPU, or as much as there is room for; routed experts by the
    CPU, streamed to the GPU, or there."""

    def __init__(
        self,
        model: HybridModel,
        cache: LatentCache,
        sampler: Sampler,
        num_threads: int = 1,
        keeper: CountKeeper | None = None,
    ) -> None:
        """`num_threads`: torch's own, for prompts in layers on the CPU, and of those that compile;
        `keeper` gets a look at what was counted after every step."""
        self._model = model
        self._num_threads = num_threads
        self._keeper = keeper
        self._cache = cache
        self._sampler = sampler
        self._graphs: dict[int, DecodeGraph] = {}
        self._longest = 0  # tokens of a prompt so far
        # The CPU's part runs on the pool's threads; torch's own would only be in their way.
        torch.set_num_threads(1)

    def expert_traffic(self) -> ExpertTraffic:
        return self._model.expert_traffic()

    @torch.inference_mode()
    def warm_up(self, max_tokens: int) -> None:
        """Compile the kernels and capture the graph of one sequence, so that the first request need
        not wait for it; steps have at most `max_tokens`."""
        room = min(max_tokens, self._cache.num_blocks * self._cache.block_size)
        prompts = [count for count in WARM_UP_TOKENS if count <= room]
        self.compile_kernels(prompts)
        for count in prompts:
            self._warm_up_prompt(count)
        self._graph(1)
        torch.cuda.synchronize(self._model.device)

    @torch.inference_mode()
    def compile_kernels(self, prompts: Sequence[int]) -> None:
        """Compile what prompts of so many tokens launch, and decodes of any number of sequences.
        Nothing is computed: cache, counts and what is known of speeds stay as they are."""

        def launch_all() -> None:
            for count in prompts:
                self._warm_up_prompt(count)
            for count in range(1, MAX_FEW_TOKENS + 1):
                self._launch_decode(count)

        num_threads = min(self._num_threads, MAX_COMPILING)
        compile_launches(launch_all, self._model.device, num_threads)

    def _launch_decode(self, num_sequences: int) -> None:
        """What `DecodeGraph` captures."""
        tensors = StepTensors(self._model, self._cache, num_sequences, num_sequences)
        step = tensors.step((1,) * num_sequences, (0,) * num_sequences)
        out = self._model.decode(step, self._cache, is_captured=True)
        if self._model.tail is None:
            argmax.argmax(out, argmax.new_keys(out))

    def _warm_up_prompt(self, num_tokens: int) -> None:
        """Compute random embeddings; the cache stays as it is."""
        tensors = StepTensors(self._model, self._cache, num_tokens, 1)
        step = tensors.step((num_tokens,), (0,))
        step.x.normal_()
        self._forward(step, [0])

    @torch.inference_mode()
    def run(self, batch: Batch, meanwhile: Callable[[], None] = lambda: None) -> list[Sampled]:
        requests = [item.request for item in batch.items if item.samples]
        compute = self._replay if self._has_graph(batch) else self._layer_by_layer
        try:
            sampled = compute_within(lambda: compute(batch, requests, meanwhile))
        except KtopsError as error:
            # This step is lost, and with it its requests; the next one begins anew.
            logger.error("%s", error.message)
            self._model.recover()
            return [Sampled(None, error=error.message) for _ in requests]
        if self._keeper is not None:
            self._keeper.look()
        return sampled

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        return compute_within(lambda: self._eager(batch, range(batch.num_tokens)).cpu())

    def _has_graph(self, batch: Batch) -> bool:
        return self._model.device.type == "cuda" and _is_decode(batch)

    def _replay(
        self, batch: Batch, requests: list[Request], meanwhile: Callable[[], None]
    ) -> list[Sampled]:
        graph = self._graph(len(batch.items))
        graph.tensors.fill(batch)
        out, best = graph.replay(meanwhile)
        return self._sampler(self._finish(out, batch), requests, best)

    def _layer_by_layer(
        self, batch: Batch, requests: list[Request], meanwhile: Callable[[], None]
    ) -> list[Sampled]:
        meanwhile()
        logits = self._eager(batch)
        return self._sampler(logits, requests) if requests else []

    def _graph(self, num_sequences: int) -> DecodeGraph:
        if num_sequences not in self._graphs:
            self._graphs[num_sequences] = DecodeGraph(self._model, self._cache, num_sequences)
        return self._graphs[num_sequences]

    def _eager(self, batch: Batch, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of some rows of a batch; of those that are to be sampled, unless told."""
        tensors = StepTensors(self._model, self._cache, batch.num_tokens, len(batch.items))
        tensors.fill(batch)
        tensors.send()
        step = tensors.step(
            tuple(item.num_tokens for item in batch.items),
            tuple(item.start for item in batch.items),
        )
        rows = _last_rows(batch) if rows is None else rows
        if _is_decode(batch):
            out = self._model.decode(step, self._cache, is_captured=False)
        else:
            out = self._forward(step, rows)
        if self._model.tail is not None:
            out = tensors.back_to_host(out)
            self._wait()
        if _is_decode(batch):
            self._model.check_decode()
        return self._finish(out, batch, rows)

    def _forward(self, step: GpuStep, rows: Sequence[int]) -> torch.Tensor:
        """A prompt; one longer than any before begins without what torch has kept of others: their
        pieces of memory are too small for it, and it would take as much beside them."""
        num_tokens = sum(step.num_tokens)
        if num_tokens > self._longest:
            self._longest = num_tokens
            torch.cuda.empty_cache()
        return self._model.forward(step, self._cache, rows)

    def _finish(
        self, out: torch.Tensor, batch: Batch, rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Logits of what came from the GPU: these already, or x for the layers on the CPU."""
        if self._model.tail is None:
            return out
        step = step_input(batch, self._cache)
        if rows is not None:
            step = replace(step, sampled_rows=list(rows))
        # As in `CpuRunner`: many threads are for a prompt's matrices alone.
        torch.set_num_threads(1 if _has_single_tokens(batch) else self._num_threads)
        try:
            return self._model.finish(out, step, self._cache)
        finally:
            torch.set_num_threads(1)

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()


def _is_decode(batch: Batch) -> bool:
    return _has_single_tokens(batch) and len(batch.items) <= MAX_FEW_TOKENS


def _has_single_tokens(batch: Batch) -> bool:
    return batch.num_tokens == len(batch.items)


def _last_rows(batch: Batch) -> list[int]:
    """The rows of the tokens after which a next one is drawn."""
    rows, end = [], 0
    for item in batch.items:
        end += item.num_tokens
        if item.samples:
            rows.append(end - 1)
    return rows
