"""Which experts are worth copies in GPU memory, by how often each was chosen. Pure.

A copy saves the reads of its expert from RAM and takes its bytes of GPU memory: bytes saved for a
byte held are how often it is chosen, whatever its size. So the most chosen are best, over all
layers. What they are held against are whole layers in GPU memory: those save the reads of all their
experts, their handoffs, and their RAM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ktops_engine.model_config import ModelConfig

# Bytes that RAM could deliver in the time of a layer's handoff: 20 us at 200 GB/s. Small beside an
# R1 layer's 190 MB for a token, so that no machine's own rate is asked for.
HANDOFF_BYTES = 4_000_000
# Choices of each expert that are taken for granted before anything is counted. Those that were
# chosen most were so in part by chance: with the embedded model, the tenth of the experts that 251
# tokens chose most had 17 % of their choices, and 13 % of those of other prompts.
PRIOR_CHOICES = 8

Chosen = tuple[tuple[int, ...], ...]  # expert ids of each layer with experts, most used first


@dataclass(frozen=True)
class ExpertUse:
    """How often each expert of each layer that has experts was chosen: [layers][experts]."""

    counts: tuple[tuple[int, ...], ...]

    @cached_property
    def shares(self) -> npt.NDArray[np.float64]:
        """Of a layer's choices to come, those of each expert: [layers, experts], zeros where
        nothing was counted."""
        counts = np.array(self.counts, dtype=np.float64)
        totals = counts.sum(axis=1, keepdims=True)
        seen = (totals > 0) * (counts + PRIOR_CHOICES)
        shares: npt.NDArray[np.float64] = seen / (totals + PRIOR_CHOICES * counts.shape[1])
        return shares

    @cached_property
    def ranking(self) -> npt.NDArray[np.int64]:
        """Those that were ever chosen, by share, of equal ones the first: [n], layer * experts +
        expert."""
        flat = self.shares.ravel()
        order = np.argsort(-flat, kind="stable")
        return order[np.array(self.counts).ravel()[order] > 0]


@dataclass(frozen=True)
class HotFit:
    """The `num_experts` most used experts of the layers from `first_layer` on: `num_bytes`, and the
    share of all bytes of routed experts that a token need not read from RAM for them."""

    first_layer: int = 0
    num_experts: int = 0
    num_bytes: int = 0
    saved_share: float = 0.0


def choose_hot(use: ExpertUse, num: int, first_layer: int = 0) -> Chosen:
    """The `num` most used experts of the layers from `first_layer` on, by layer; fewer when fewer
    were ever chosen."""
    num_layers, num_experts = use.shares.shape
    chosen: list[list[int]] = [[] for _ in range(num_layers)]
    for place in use.ranking[use.ranking >= first_layer * num_experts][:num].tolist():
        chosen[place // num_experts].append(place % num_experts)
    return tuple(map(tuple, chosen))


def best_mix(
    use: ExpertUse,
    layer_bytes: Sequence[int],
    model: ModelConfig,
    rooms: Mapping[int, int],
    most: int | None = None,
) -> HotFit:
    """How many whole layers, the first ones, and how many copies of experts of the others save a
    token most reads from RAM; of equal ones the most layers.

    layer_bytes: of the routed experts of each layer; rooms: numbers of layers to try, and the bytes
    that each leaves; most: experts to hold, in layers and as copies.
    """
    one, token = model.n_routed_experts, model.num_experts_per_tok / model.n_routed_experts
    sizes = np.asarray(layer_bytes, dtype=np.int64) // one
    best, best_saved = HotFit(), -1.0
    for count, room in sorted(rooms.items()):
        fit = _fit(use, sizes, room, None if most is None else most - count * one, count)
        copied = fit.saved_share * sum(layer_bytes) * token
        saved = sum(layer_bytes[:count]) * token + count * HANDOFF_BYTES + copied
        if saved >= best_saved:
            best, best_saved = fit, saved
    return best


def _fit(
    use: ExpertUse,
    sizes: npt.NDArray[np.int64],
    room: int,
    most: int | None,
    first_layer: int,
) -> HotFit:
    """As many of the most used experts of the layers from `first_layer` on as `room` bytes hold, at
    `most` so many. sizes: bytes of an expert of each layer."""
    num_experts = use.shares.shape[1]
    ranking = use.ranking[use.ranking >= first_layer * num_experts][:most]
    held = sizes[ranking // num_experts]
    ends = np.cumsum(held)
    num = int(np.searchsorted(ends, room, side="right"))
    if num == 0:
        return HotFit(first_layer)
    saved = float((use.shares.ravel()[ranking[:num]] * held[:num]).sum())
    return HotFit(first_layer, num, int(ends[num - 1]), saved / int(sizes.sum()))
