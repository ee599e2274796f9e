"""The placements that this version's engine computes by, of those that `place` can think of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ktops_engine.config import EngineConfig
from ktops_engine.machine import MachineFacts
from ktops_engine.plan.model_bytes import ModelFacts
from ktops_engine.plan.placement import every_token_gpu_bytes, place, usable_bytes
from ktops_engine.plan.shares import Placement
from ktops_engine.plan.sizes import further_gpu_buffer_bytes, gib
from ktops_engine.text import Text, text


def place_served(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> Placement:
    """The placement that this version's engine computes by: the first GPU holds all that every
    token uses, all GPUs the routed experts of the layers that `place` puts there; or else the CPU
    computes alone. Its notes say what is different from `place`, and why.

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
    notes = (*placement.notes, *_unused_gpus(config, facts, machine, placement))
    return replace(placement, notes=notes)


def _unused_gpus(
    config: EngineConfig, facts: ModelFacts, machine: MachineFacts, placement: Placement
) -> Iterator[Text]:
    """What is said of GPUs that hold nothing while routed experts are in RAM that could be there:
    how to use them, or that they are too small."""
    used = {share.gpu_index for share in placement.gpus}
    unused = [gpu for index, gpu in enumerate(machine.gpus) if index not in used]
    if not unused or not placement.ram.routed_bytes or not facts.can_stay_on_gpu:
        return
    sizes = [layer.routed_experts for layer in facts.bytes.layers if layer.routed_experts]
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
