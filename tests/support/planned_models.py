"""Models of the catalogue and made-up machines, for tests of planning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ktops.hub.catalogue import find_entry
from ktops.planning.model_facts import described_facts
from ktops_engine.config import EngineConfig
from ktops_engine.machine import GpuFacts, MachineFacts
from ktops_engine.plan import (
    ModelFacts,
    every_token_gpu_bytes,
    least_gpu_bytes,
    place,
)
from ktops_engine.source import open_source

GIB = 1 << 30


def described(alias: str = "r1-q4km") -> ModelFacts:
    """A catalogue model as its description has it."""
    return described_facts(find_entry(alias))


def machine(ram: int = 1000 * GIB, *, num_cores: int = 64, vram: tuple[int, ...] = ()):
    """A machine with `ram` bytes free and GPUs with `vram` bytes free, all its rates known."""
    return MachineFacts(
        cpus=tuple(range(num_cores)),
        total_ram_bytes=ram,
        available_ram_bytes=ram,
        gpus=tuple(GpuFacts("GPU", size, size, 1000e9, 25e9, 150e12) for size in vram),
        read_bandwidth=300e9,
        isa="avx512vnni",
    )


def config(**values: Any) -> EngineConfig:
    """A wish for an engine; the files need not exist."""
    return EngineConfig(Path("model.gguf"), **values)


def with_room_for(gpu_layers: int, wish: EngineConfig, here: MachineFacts) -> EngineConfig:
    """The wish with so much GPU memory that `gpu_layers` of its files' model fit, not the head."""
    facts = open_source(wish).facts
    sizes = range(least_gpu_bytes(wish, facts), every_token_gpu_bytes(wish, facts), 64 << 10)
    wishes = (replace(wish, gpu_memory_bytes=size) for size in sizes)
    return next(wish for wish in wishes if place(wish, facts, here).gpu_layers == gpu_layers)
