"""DeepSeek-V2, V3 and R1 on a GPU, their routed experts in RAM or there too.

The residual stream is float32, what passes between layers bfloat16. A decode of some sequences can
be captured as a graph, because nothing in it depends on the host: positions, lengths and blocks are
read from tensors, and routed experts in RAM are asked for by a flag that the CPU watches.

What the GPU has no room for, the last layers and the head, the CPU computes after it (`CpuTail`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import torch

from ktops_engine.kernels.norm import rms_norm
from ktops_engine.kernels.router import route, route_logits
from ktops_engine.kernels.routing import Routing
from ktops_engine.kv_cache import LatentCache
from ktops_engine.layers.gpu_attention import GpuMlaAttention
from ktops_engine.layers.gpu_linear import GpuGateUp, GpuLinear
from ktops_engine.layers.rotary import Rotary
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2 import EMBEDDING, CpuTail, StepInput
from ktops_engine.models.weights import Weights
from ktops_engine.moe.handoff import Handoff
from ktops_engine.stats import ExpertTraffic


@dataclass(frozen=True)
class GpuStep:
    """What one forward pass reads, on the device unless said.

    x: embeddings [tokens, hidden_size] float32, overwritten; positions, slots: [tokens] int32, the
    place of each token in its sequence and its row of the cache; lengths: [sequences] int32, tokens
    of each sequence with those of this step; block_tables: [sequences, max_blocks] int32.
    On the host: `num_tokens` of each sequence in this step, and the position it `starts` from.
    """

    x: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor
    num_tokens: tuple[int, ...]
    starts: tuple[int, ...]

    def single_tokens(self, rows: Sequence[int]) -> GpuStep:
        """Some rows, each as a sequence of which only that token is new."""
        firsts = list(accumulate(self.num_tokens, initial=0))
        owners = [bisect_right(firsts, row) - 1 for row in rows]
        on_gpu = self.x.device.type == "cuda"
        # From pinned memory: the host need not wait until the GPU has come so far.
        indices = torch.tensor([list(rows), owners], pin_memory=on_gpu)
        at, of = indices.to(self.x.device, non_blocking=True)
        positions = self.positions[at]
        return GpuStep(
            x=self.x[at],
            positions=positions,
            slots=self.slots[at],
            lengths=positions + 1,
            block_tables=self.block_tables[of],
            num_tokens=(1,) * len(rows),
            starts=tuple(
                self.starts[owner] + row - firsts[owner]
                for row, owner in zip(rows, owners, strict=True)
            ),
        )


class GpuFeedForward:
    """A dense layer's or the shared experts' feed-forward."""

    def __init__(self, gate_up: GpuGateUp, down: GpuLinear) -> None:
        self._gate_up = gate_up
        self._down = down

    def add_to(self, x: torch.Tensor, h: torch.Tensor) -> None:
        """x += down(silu(gate(h)) * up(h)); x: [tokens, hidden] float32, h: the same in bf16."""
        self._down(self._gate_up(h), add_to=x)


class DenseLayer:
    """The feed-forward of a layer without experts."""

    def __init__(self, feed_forward: GpuFeedForward) -> None:
        self._feed_forward = feed_forward

    def prefill(self, x: torch.Tensor, h: torch.Tensor) -> None:
        self._feed_forward.add_to(x, h)

    def decode(self, x: torch.Tensor, h: torch.Tensor, *, is_captured: bool) -> None:
        del is_captured
        self._feed_forward.add_to(x, h)


class RoutedExperts(Protocol):
    """The routed experts of a layer, wherever they lie."""

    def prefill(self, x: torch.Tensor, routing: Routing, meanwhile: Callable[[], None]) -> None:
        """x += the experts of a prompt. x: [tokens, hidden_size] float32, where `routing` is;
        `meanwhile` may queue what the GPU does while the host plans."""

    def decode(
        self,
        x: torch.Tensor,
        routing: Routing,
        meanwhile: Callable[[], None],
        *,
        is_captured: bool,
    ) -> None:
        """The same for a token of some sequences each, whose experts may be computed beside what
        `meanwhile` queues. While it `is_captured`, nobody answers for the CPU."""


class ExpertLayer:
    """Routed experts beside the shared ones (V2 report, section 2.2), which the GPU computes while
    it waits for what it needs for the others."""

    def __init__(
        self,
        router: tuple[torch.Tensor, torch.Tensor | None],
        shared: GpuFeedForward | None,
        routed: RoutedExperts,
        counts: torch.Tensor,
        config: ModelConfig,
    ) -> None:
        """counts: [experts] int32, of tokens that decodes send to each. Prompts do not count: they
        read nearly every expert once, however often it is chosen."""
        self._counts = counts
        self._weight, self._bias = router
        self._shared = shared
        self._routed = routed
        self._config = config

    def prefill(self, x: torch.Tensor, h: torch.Tensor) -> None:
        self._routed.prefill(x, self._route(h), lambda: self._add_shared(x, h))

    def decode(self, x: torch.Tensor, h: torch.Tensor, *, is_captured: bool) -> None:
        routing = self._route(h, self._counts)
        self._routed.decode(x, routing, lambda: self._add_shared(x, h), is_captured=is_captured)

    def _add_shared(self, x: torch.Tensor, h: torch.Tensor) -> None:
        if self._shared is not None:
            self._shared.add_to(x, h)

    def _route(self, h: torch.Tensor, counts: torch.Tensor | None = None) -> Routing:
        logits = route_logits(h, self._weight)
        return Routing(h, *route(logits, self._bias, self._config, counts=counts))


@dataclass(frozen=True)
class GpuLayer:
    attention_norm: torch.Tensor
    attention: GpuMlaAttention
    feed_forward_norm: torch.Tensor
    feed_forward: DenseLayer | ExpertLayer


CachedLayer = tuple[GpuLayer, torch.Tensor]  # with its cache, [slots, rank + rope] bf16


class GpuHead:
    """Norm and output head."""

    def __init__(self, norm: torch.Tensor, head: GpuLinear, config: ModelConfig) -> None:
        """norm: [hidden_size] float32, cuda."""
        self._norm = norm
        self._head = head
        self._eps = config.rms_norm_eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden_size] float32 -> logits [tokens, vocab_size] float32."""
        if not len(x):  # a chunk after which nothing is drawn
            return x.new_empty(0, self._head.num_rows)
        return self._head(rms_norm(x, self._norm, self._eps), out_dtype=torch.float32)


class HybridModel:
    """Embedding in RAM, decoder layers, norm and head on the GPU, routed experts wherever. The last
    layers and the head may be the CPU's instead."""

    def __init__(
        self,
        in_ram: Weights,
        layers: Sequence[GpuLayer],
        end: GpuHead | CpuTail,
        handoff: Handoff | None,
        expert_counts: torch.Tensor,
        config: ModelConfig,
        max_positions: int,
        device: torch.device,
    ) -> None:
        """`end`: what comes after the `layers` on the GPU; `handoff`: of those whose experts are in
        RAM, None when there are none; `expert_counts`: [layers with experts on the GPU, experts]
        int32, what decodes have chosen."""
        self._in_ram = in_ram
        self._layers = layers
        self._head = end if isinstance(end, GpuHead) else None
        self.tail = end if isinstance(end, CpuTail) else None
        self._eps = config.rms_norm_eps
        self._rotations = Rotary(config, max_positions).cos_sin.to(device)
        self._handoff = handoff
        self.expert_counts = expert_counts
        self.hidden_size = config.hidden_size
        self.device = device
        self.cache_kind = (torch.bfloat16, device)

    def expert_traffic(self) -> ExpertTraffic:
        """What has been read of the routed experts in RAM."""
        traffic = self._handoff.traffic if self._handoff is not None else ExpertTraffic()
        return traffic if self.tail is None else traffic + self.tail.expert_traffic()

    def serve_decode(self) -> None:
        """Compute the CPU's part of a captured decode that has been launched.

        Raises KtopsError as `Handoff.serve`.
        """
        if self._handoff is not None:
            self._handoff.serve(self._handoff.num_layers)

    def check_decode(self) -> None:
        """Raises KtopsError handoff-timeout when a decode, which the GPU has done, failed."""
        if self._handoff is not None:
            self._handoff.check()

    def recover(self) -> None:
        """After a step that failed: the next one works. What it had counted goes, with all that
        was counted since somebody looked."""
        if self._handoff is not None:
            self._handoff.reset()
        self.expert_counts.zero_()

    def embed(self, token_ids: list[int], out: torch.Tensor) -> None:
        """Rows of the embedding to `out`: [tokens, hidden_size] float32, cpu."""
        self._in_ram.float32_rows(EMBEDDING, token_ids, out)

    def decode(self, step: GpuStep, cache: LatentCache, *, is_captured: bool) -> torch.Tensor:
        """One token for each sequence -> logits [sequences, vocab_size] float32; where there is a
        `tail`, x for it, [sequences, hidden_size] float32.

        While it `is_captured`, nobody answers for the CPU: who replays the graph calls
        `serve_decode`.
        """
        x, (cos_sin, slots) = step.x, self._places(step)
        for layer, rows in self._with_caches(cache):
            layer.attention.decode(
                rms_norm(x, layer.attention_norm, self._eps),
                x, cos_sin, rows, slots, step.block_tables, step.lengths,
            )  # fmt: skip
            h = rms_norm(x, layer.feed_forward_norm, self._eps)
            layer.feed_forward.decode(x, h, is_captured=is_captured)
        return x if self._head is None else self._head(x)

    def forward(self, step: GpuStep, cache: LatentCache, rows: Sequence[int]) -> torch.Tensor:
        """Any number of tokens for each sequence -> logits of some rows, [len(rows), vocab_size]
        float32; where there is a `tail`, x for it, [tokens, hidden_size] float32: of all tokens, or
        of those rows where it has no layers."""
        layers = list(self._with_caches(cache))
        goes_on = self.tail is not None and self.tail.num_layers > 0
        if goes_on or len(rows) == len(step.x):
            self._prefill(step, layers)
        else:
            self._prefill(step, layers[:-1])
            step = self._narrow(step, *layers[-1], rows)
        return step.x if self._head is None else self._head(step.x)

    def _prefill(self, step: GpuStep, layers: Iterable[CachedLayer]) -> None:
        """Layers for any number of tokens; x is changed in place."""
        x, (cos_sin, slots) = step.x, self._places(step)
        for layer, cached in layers:
            h = rms_norm(x, layer.attention_norm, self._eps)
            layer.attention.prefill(h, x, cos_sin, cached, slots, step)
            layer.feed_forward.prefill(x, rms_norm(x, layer.feed_forward_norm, self._eps))

    def _narrow(
        self, step: GpuStep, last: GpuLayer, cached: torch.Tensor, rows: Sequence[int]
    ) -> GpuStep:
        """The last layer of a prompt -> a step of some rows alone. Tokens to come need nothing of
        it but its cache entries: all enter them, and the rows go on, each by itself."""
        h, (cos_sin, slots) = rms_norm(step.x, last.attention_norm, self._eps), self._places(step)
        last.attention.enter(h, cos_sin, cached, slots)
        if not rows:
            return replace(step, x=step.x[:0])
        step = step.single_tokens(rows)
        self._prefill(step, [(last, cached)])
        return step

    def _places(self, step: GpuStep) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations of the tokens, [tokens, rope / 2, 2] float32, and their rows of the cache."""
        return self._rotations[step.positions.long()], step.slots.long()

    def finish(self, x: torch.Tensor, step: StepInput, cache: LatentCache) -> torch.Tensor:
        """What the `tail` makes of x, on the host: [tokens, hidden_size] float32, overwritten ->
        logits of the step's sampled rows [rows, vocab_size] float32."""
        if self.tail is None:
            raise ValueError("the whole model is on the GPU")
        return self.tail(x, step, cache.layers[len(self._layers) :])

    def _with_caches(self, cache: LatentCache) -> Iterator[CachedLayer]:
        """The layers on the GPU, each with its part of the cache."""
        return zip(self._layers, cache.layers[: len(self._layers)], strict=True)
