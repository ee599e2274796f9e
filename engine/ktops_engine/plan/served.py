"""The placements that this version's engine computes by, of those that `place` can think of."""

from __future__ import annotations

from dataclasses import replace

from ktops_engine.config import EngineConfig
from ktops_engine.machine import MachineFacts
from ktops_engine.plan.model_bytes import ModelFacts
from ktops_engine.plan.placement import every_token_gpu_bytes, place, usable_bytes
from ktops_engine.plan.shares import Placement
from ktops_engine.plan.sizes import gib
from ktops_engine.text import Text, text


def place_served(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> Placement:
    """The placement that this version's engine computes by: the first GPU holds all that every
    token uses, and the routed experts of as many layers as `place` puts there; or else the CPU
    computes alone. Its notes say what is different from `place`, and why.

    Raises KtopsError as `place`.
    """
    if not machine.gpus:
        return place(config, facts, machine)
    if obstacle := machine.gpu_obstacle or facts.gpu_obstacle:
        unused = text("the GPU is not used: {reason}", reason=obstacle)
        return _without_gpus(config, facts, machine, [unused])
    first = replace(machine, gpus=machine.gpus[:1])
    placement = place(config, facts, first)
    if not placement.is_hybrid:
        return _without_gpus(config, facts, machine, _lack_of_room(config, facts, machine))
    notes = list(placement.notes)
    if len(machine.gpus) > 1:
        notes.append(
            text("this version computes on the first of {count} GPUs", count=len(machine.gpus))
        )
    return replace(placement, notes=tuple(notes))


def _without_gpus(
    config: EngineConfig, facts: ModelFacts, machine: MachineFacts, notes: list[Text]
) -> Placement:
    placement = place(config, facts, replace(machine, gpus=()))
    return replace(placement, notes=(*placement.notes, *notes))


def _lack_of_room(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> list[Text]:
    """Why the first GPU cannot hold what every token uses, and which one could."""
    needed = every_token_gpu_bytes(config, facts)
    first, *others = (usable_bytes(config, gpu) for gpu in machine.gpus)
    notes = [
        text(
            "the GPU is not used: {there} GiB of its memory can be used, {needed} GiB are needed "
            "for all that every token uses",
            there=gib(first),
            needed=gib(needed),
        )
    ]
    if max(others, default=0) >= needed:
        notes.append(
            text(
                "another GPU has {there} GiB: the first one that {variable} names is used",
                there=gib(max(others)),
                variable="CUDA_VISIBLE_DEVICES",
            )
        )
    return notes
