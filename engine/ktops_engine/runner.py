"""Runs a batch through the model: builds the step's inputs, computes logits, draws tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from ktops_engine.kv_cache import LatentCache
from ktops_engine.layers.attention import SequenceInput, part_of
from ktops_engine.models.deepseek2 import Deepseek2Model, StepInput
from ktops_engine.sampler import Sampler
from ktops_engine.stats import ExpertTraffic
from ktops_engine.types import Batch, BatchItem, Sampled


class Runner(Protocol):
    """One step at a time, from one thread. Reads requests; never changes them."""

    def run(self, batch: Batch, meanwhile: Callable[[], None] = lambda: None) -> list[Sampled]:
        """Compute a batch; one answer for each item that samples, in the batch's order.
        `meanwhile` is called once, while a GPU computes or before."""

    def logits(self, batch: Batch) -> torch.Tensor:
        """Compute a batch -> the logits of all its tokens, [num_tokens, vocab_size] float32."""

    def expert_traffic(self) -> ExpertTraffic:
        """What has been read of the routed experts in RAM. From any thread."""


class CpuRunner:
    """Runs on the CPU alone."""

    def __init__(
        self, model: Deepseek2Model, cache: LatentCache, sampler: Sampler, num_threads: int
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._num_threads = num_threads

    def expert_traffic(self) -> ExpertTraffic:
        return self._model.expert_traffic()

    @torch.inference_mode()
    def run(self, batch: Batch, meanwhile: Callable[[], None] = lambda: None) -> list[Sampled]:
        meanwhile()
        # torch's threads meet at barriers that take milliseconds when another process holds a core:
        # worth it for a prompt's matrices, ruinous for a decode's small ones.
        is_decode = batch.num_tokens == len(batch.items)
        torch.set_num_threads(1 if is_decode else self._num_threads)
        requests = [item.request for item in batch.items if item.samples]
        logits = self._model.forward(step_input(batch, self._cache), self._cache)
        return self._sampler(logits, requests) if requests else []

    @torch.inference_mode()
    def logits(self, batch: Batch) -> torch.Tensor:
        every_row = list(range(batch.num_tokens))
        return self._model.forward(
            replace(step_input(batch, self._cache), sampled_rows=every_row), self._cache
        )


def step_input(batch: Batch, cache: LatentCache) -> StepInput:
    """What the layers on the CPU read of a batch: its tokens and their cache rows."""
    token_ids: list[int] = []
    positions: list[int] = []
    sequences: list[SequenceInput] = []
    sampled_rows: list[int] = []
    for item in batch.items:
        end = item.start + item.num_tokens
        first_row = len(token_ids)
        token_ids += tokens_of(item)
        positions += range(item.start, end)
        context = cache.slots(item.request.block_table, end)
        sequences.append(
            SequenceInput(
                rows=slice(first_row, first_row + item.num_tokens),
                new=part_of(context, item.start, end),
                context=context,
                start=item.start,
            )
        )
        if item.samples:
            sampled_rows.append(len(token_ids) - 1)
    return StepInput(token_ids, torch.tensor(positions), tuple(sequences), sampled_rows)


def tokens_of(item: BatchItem) -> list[int]:
    """The tokens that a step computes of one request."""
    request, end = item.request, item.start + item.num_tokens
    num_prompt = len(request.prompt_token_ids)
    if item.start >= num_prompt:  # a decode: do not copy a long prompt for one token
        return request.output_token_ids[item.start - num_prompt : end - num_prompt]
    return request.token_ids[item.start : end]
