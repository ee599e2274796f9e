"""The placements that this version's engine computes by, of those that `place` can think of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ktops_engine.config import EngineConfig
from ktops_engine.machine import MachineFacts
from ktops_engine.plan.expert_placement import expert_layers
from ktops_engine.plan.model_bytes import ModelFacts
from ktops_engine.plan.placement import (
    every_token_gpu_bytes,
    least_gpu_bytes,
    place,
    usable_bytes,
)
from ktops_engine.plan.shares import Placement
from ktops_engine.plan.sizes import further_gpu_buffer_bytes, gib
from ktops_engine.text import Text, text


def place_served(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> Placement:
    """The placement that this version's engine computes by: the first GPU holds what every token
    uses, as far as there is room for whole layers, all GPUs the routed experts of the layers that
    `place` puts there; with no room for a layer the CPU computes alone. Its notes say what is
    different from `place`, and why, and what a GPU lacks.

    Raises KtopsError as `place`.
    """
    if not machine.gpus:
        return place(config, facts, machine)
    if obstacle := machine.gpu_obstacle or facts.gpu_obstacle:
        unused = text("the GPU is not used: {reason}", reason=obstacle)
        return _without_gpus(config, facts, machine, [unused])
    placement = place(config, facts, machine)
    if not placement.is_hybrid:
        return _without_gpus(config, facts, machine, _lack_of_room(config, facts, machine))
    notes = list(placement.notes)
    if not placement.gpu_head:
        notes += _left_to_cpu(placement, config, facts, machine)
    notes += _unused_gpus(config, facts, machine, placement)
    return replace(placement, notes=tuple(notes))


def _unused_gpus(
    config: EngineConfig, facts: ModelFacts, machine: MachineFacts, placement: Placement
) -> Iterator[Text]:
    """What is said of GPUs that hold nothing while routed experts are in RAM that could be there:
    how to use them, or that they are too small."""
    used = {share.gpu_index for share in placement.gpus}
    unused = [gpu for index, gpu in enumerate(machine.gpus) if index not in used]
    sizes = expert_layers(facts, placement.gpu_layers)
    if not unused or not sizes or not placement.ram.routed_bytes or not facts.can_stay_on_gpu:
        return
    needed = min(sizes) + further_gpu_buffer_bytes(facts, placement.prefill_chunk)
    have_room = max(usable_bytes(config, gpu) for gpu in unused) >= needed
    counts = {"unused": len(unused), "count": len(machine.gpus)}
    if config.gpu_memory_bytes is None and config.gpu_experts is None and have_room:
        yield text(
            "{unused} of {count} GPUs hold nothing: {flag} puts routed experts there",
            **counts,
            flag="--gpu-memory all",
        )
    elif config.gpu_memory_bytes is not None and not have_room:
        yield text(
            "{unused} of {count} GPUs hold nothing: the experts of a layer and what they are "
            "computed with take {needed} GiB",
            **counts,
            needed=gib(needed),
        )


def _without_gpus(
    config: EngineConfig, facts: ModelFacts, machine: MachineFacts, notes: list[Text]
) -> Placement:
    placement = place(config, facts, replace(machine, gpus=()))
    return replace(placement, notes=(*placement.notes, *notes))


def _lack_of_room(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> list[Text]:
    """Why the first GPU cannot hold a layer, and which one could hold all."""
    unused = text(
        "the GPU is not used: {there} GiB of its memory can be used, {least} GiB are needed for "
        "one layer, {needed} GiB for all that every token uses",
        there=gib(usable_bytes(config, machine.gpus[0])),
        least=gib(least_gpu_bytes(config, facts)),
        needed=gib(every_token_gpu_bytes(config, facts)),
    )
    return [unused, *_larger_gpu(config, facts, machine)]


def _left_to_cpu(
    placement: Placement, config: EngineConfig, facts: ModelFacts, machine: MachineFacts
) -> list[Text]:
    """What the first GPU has no room for, and what would hold all."""
    there = gib(usable_bytes(config, machine.gpus[0]))
    needed = gib(every_token_gpu_bytes(config, facts))
    total = facts.config.num_hidden_layers
    if placement.gpu_layers == total:
        left = text(
            "the GPU holds all layers but not the output head: {there} GiB of its memory can be "
            "used, {needed} GiB would hold it too",
            there=there,
            needed=needed,
        )
    else:
        left = text(
            "the GPU holds {layers} of {total} layers, the CPU computes the others: {there} GiB of "
            "its memory can be used, {needed} GiB would hold all",
            layers=placement.gpu_layers,
            total=total,
            there=there,
            needed=needed,
        )
    return [left, *_larger_gpu(config, facts, machine)]


def _larger_gpu(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> list[Text]:
    """Which other GPU has room for all that every token uses."""
    others = max((usable_bytes(config, gpu) for gpu in machine.gpus[1:]), default=0)
    if others < every_token_gpu_bytes(config, facts):
        return []
    return [
        text(
            "another GPU has {there} GiB: the first one that {variable} names is used",
            there=gib(others),
            variable="CUDA_VISIBLE_DEVICES",
        )
    ]
