"""Processors, GPUs and whole machines by name, read from datasheet.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TypeVar

from ktops_engine.machine import GpuFacts
from ktops_engine.plan.rates import PCIE_BYTES_PER_LANE

_GIB = 1 << 30
_BYTES_PER_TRANSFER = 8
# Words of a product name that tell nothing apart.
_FILLERS = re.compile(
    r"nvidia|geforce|intel|amd|\((?:r|tm)\)|platinum|gold|silver|processor|cpu|gpu|tesla|generation"
    r"|blackwell|workstation|server|edition|max-q|ryzen (?=threadripper)"
    r"|\d+th gen|\d+-cores?|@.*|w/.*"
)
_SHORTEST_NAME = 2


@dataclass(frozen=True)
class CpuSheet:
    """One socket: physical cores, and the bandwidth of its memory channels in bytes/s."""

    name: str
    cores: int
    read_bandwidth: float
    isa: str


_Sheet = TypeVar("_Sheet", CpuSheet, GpuFacts)


@dataclass(frozen=True)
class Preset:
    """A machine that has a name of its own. `machine` is in the language of `--machine`."""

    name: str
    title: str
    machine: str
    compare: bool


@dataclass(frozen=True)
class Datasheet:
    """Everything that has a name; `cpus` and `gpus` by `spelling`."""

    cpus: Mapping[str, CpuSheet]
    gpus: Mapping[str, GpuFacts]
    presets: Mapping[str, Preset]

    def closest(self, name: str) -> str | None:
        """The known name that `name` was probably meant to be."""
        wanted = spelling(name)
        known = {preset: preset for preset in self.presets}
        for sheets in (self.cpus, self.gpus):
            for full, sheet in sheets.items():
                known[full] = known[full[-max(_SHORTEST_NAME, len(wanted)) :]] = sheet.name
        close = get_close_matches(wanted, known, n=1, cutoff=0.6)
        return known[close[0]] if close else None

    def cpu(self, name: str) -> CpuSheet | None:
        """The processor of a name as people or the system write it."""
        return _find(self.cpus, name)

    def gpu(self, name: str) -> GpuFacts | None:
        """The GPU of a name as people or its driver write it."""
        return _find(self.gpus, name)


@cache
def load_datasheet() -> Datasheet:
    """The tables that ship with ktops."""
    file = resources.files(__package__).joinpath("datasheet.toml")
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    cpus = (
        CpuSheet(
            name,
            row["cores"],
            row["channels"] * row["mts"] * 1e6 * _BYTES_PER_TRANSFER,
            row["isa"],
        )
        for name, row in tables["cpu"].items()
    )
    gpus = (
        GpuFacts(
            name=name,
            total_bytes=row["vram"] * _GIB,
            free_bytes=row["vram"] * _GIB,
            read_bandwidth=row["bandwidth"] * 1e9,
            pcie_bandwidth=row["lanes"] * PCIE_BYTES_PER_LANE[row["pcie"]],
            bf16_flops=row["tflops"] * 1e12,
        )
        for name, row in tables["gpu"].items()
    )
    presets = (
        Preset(name, row["title"], row["machine"], row.get("compare", False))
        for name, row in tables["preset"].items()
    )
    return Datasheet(
        MappingProxyType({spelling(cpu.name): cpu for cpu in cpus}),
        MappingProxyType({spelling(gpu.name): gpu for gpu in gpus}),
        MappingProxyType({preset.name: preset for preset in presets}),
    )


def spelling(name: str) -> str:
    """A name without what people and drivers write differently: 'RTX-4090' -> 'rtx4090'."""
    return re.sub(r"[^a-z0-9+]", "", _FILLERS.sub("", name.lower()))


def _find(table: Mapping[str, _Sheet], name: str) -> _Sheet | None:
    """A row by its whole name, or by an end that it shares with no other row: '4090', '8460Y+'."""
    wanted = spelling(name)
    if wanted in table:
        return table[wanted]
    ending = [full for full in table if len(wanted) >= _SHORTEST_NAME and full.endswith(wanted)]
    return table[ending[0]] if len(ending) == 1 else None
