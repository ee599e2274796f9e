"""Which routed experts go to GPU memory: whole layers, and copies of the most used ones."""

from __future__ import annotations

from ktops_engine.config import EngineConfig
from ktops_engine.plan.hot_experts import ExpertUse, HotFit, best_mix
from ktops_engine.plan.model_bytes import ModelFacts


def experts_on_gpus(
    config: EngineConfig,
    facts: ModelFacts,
    gpu_layers: int,
    rooms: list[int],
    ram_lack: int,
    use: ExpertUse | None,
) -> tuple[list[list[int]], HotFit]:
    """Bytes of the routed experts of every layer on each GPU: from the first layer with experts
    on, as far as the first GPU computes them (`gpu_layers`), one GPU after the other. And copies of
    the most used ones of other layers on the first GPU, where their `use` is known.

    `rooms`: bytes that each GPU has for them; `ram_lack`: those that RAM does not hold with a
    little to spare.
    """
    if not gpu_layers or not facts.can_stay_on_gpu:
        return [[] for _ in rooms], HotFit()
    sizes = expert_layers(facts, gpu_layers)
    if config.gpu_experts is not None:
        sizes = sizes[: config.gpu_experts // facts.config.n_routed_experts]
    filled = _fill(sizes, rooms)
    if sum(map(sum, filled)) == facts.bytes.routed_experts:
        return filled, HotFit()
    needed = _fill(sizes, rooms, at_least=ram_lack)
    if config.gpu_experts is None and config.gpu_memory_bytes is None:
        return needed, HotFit()
    if use is None:
        return filled, HotFit()
    ways: dict[int, list[list[int]]] = {}  # by number of layers; on the first GPU as few as can be
    for on_first in range(len(filled[0]) + 1):
        way = _fill(sizes, [sum(sizes[:on_first]), *rooms[1:]])
        if sum(map(len, way)) >= sum(map(len, needed)):
            ways.setdefault(sum(map(len, way)), way)
    left = {count: rooms[0] - sum(way[0]) for count, way in ways.items()}
    hot = best_mix(use, expert_layers(facts, gpu_layers), facts.config, left, config.gpu_experts)
    return ways[hot.first_layer], hot


def expert_layers(facts: ModelFacts, num_layers: int | None = None) -> list[int]:
    """Bytes of the routed experts of each layer that has any, of the first `num_layers`."""
    layers = facts.bytes.layers[:num_layers]
    return [layer.routed_experts for layer in layers if layer.routed_experts]


def _fill(sizes: list[int], rooms: list[int], at_least: int | None = None) -> list[list[int]]:
    """Put layers of `sizes` into `rooms` one after the other, until all are in, or the last room is
    full, or `at_least` bytes are in. Returns the sizes in each room."""
    held: list[list[int]] = [[] for _ in rooms]
    room = total = 0
    for size in sizes:
        while room < len(rooms) and sum(held[room]) + size > rooms[room]:
            room += 1
        if room == len(rooms) or (at_least is not None and total >= at_least):
            break
        held[room].append(size)
        total += size
    return held
