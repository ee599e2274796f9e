"""Whether a model fits, the plan that the engine loads by, and how much context there can be."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.machine import MachineFacts
from ktops_engine.plan.model_bytes import ModelFacts
from ktops_engine.plan.placement import place
from ktops_engine.plan.served import place_served
from ktops_engine.plan.shares import Placement
from ktops_engine.plan.sizes import BLOCK_SIZE, gib
from ktops_engine.text import joined, text


@dataclass(frozen=True)
class Lack:
    """RAM that is missing: `needed_bytes`, of which `there_bytes` can be had."""

    needed_bytes: int
    there_bytes: int

    @property
    def missing_bytes(self) -> int:
        return self.needed_bytes - self.there_bytes


def plan(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> Placement:
    """The placement that the engine loads by.

    Raises KtopsError: invalid-cpu-infer, invalid-ctx-size (status 2), not-enough-memory (status 4).
    """
    placement = place_served(config, facts, machine)
    if not placement.fits:
        raise not_enough_memory(placement, machine)
    return placement


def lack_of_ram(placement: Placement) -> Lack | None:
    """What RAM is missing, None when there is enough."""
    if placement.fits:
        return None
    return Lack(placement.total_bytes, placement.ram.usable_bytes)


def not_enough_memory(placement: Placement, machine: MachineFacts) -> KtopsError:
    """The refusal of a placement that does not fit, with its numbers and what else was said."""
    weights = placement.weights_bytes + placement.kv_up_bytes
    lack = text(
        "this model needs {needed} GiB of RAM (weights {weights}, cache for {tokens} tokens "
        "{cache}, the rest {rest}); {available} of {total} GiB are available to this process",
        needed=gib(placement.total_bytes),
        weights=gib(weights),
        tokens=placement.ctx_size,
        cache=gib(placement.kv_cache_bytes),
        rest=gib(placement.runtime_bytes),
        available=gib(machine.available_ram_bytes),
        total=gib(machine.total_ram_bytes),
    )
    return KtopsError(
        "not-enough-memory",
        joined([lack, *placement.notes], "\n  "),
        text("free memory, give a smaller --ctx-size, or choose a smaller model: ktops models"),
        exit_status=EXIT_NOT_ENOUGH,
    )


def largest_context(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> int:
    """Tokens of the longest context that fits without taking more layers off the GPU than the one
    that is asked for; than the shortest where that does not fit. 0 when nothing fits."""

    def at(ctx_size: int) -> Placement:
        return place(replace(config, ctx_size=ctx_size), facts, machine)

    def weights_on_gpu(placement: Placement) -> int:
        return sum(share.weights_bytes - share.routed_bytes for share in placement.gpus)

    limit = facts.config.max_position_embeddings
    known = place(config, facts, machine)
    if not known.fits:
        known = at(min(BLOCK_SIZE, limit))
    if not known.fits:
        return 0

    def holds(ctx_size: int) -> bool:
        placement = at(ctx_size)
        return placement.fits and weights_on_gpu(placement) >= weights_on_gpu(known)

    if holds(limit):
        return limit
    # In blocks: `low` holds, `high` does not.
    low, high = max(1, known.ctx_size // BLOCK_SIZE), -(-limit // BLOCK_SIZE)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle * BLOCK_SIZE) else (low, middle)
    return low * BLOCK_SIZE
