"""What was measured of this machine once and need not be measured again: JSON files of the user's,
a value for each machine."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ktops_engine.machine import MachineFacts
from ktops_engine.native.cache import cache_folder


def machine_key(machine: MachineFacts, sources_hash: str) -> str:
    """What a measurement is of. Another boot may be another machine, other cores give another rate,
    and so do another library and other kernels of it (KTOPS_ISA)."""
    parts: Sequence[object] = (
        machine.name, machine.cpus, machine.total_ram_bytes, machine.isa, sources_hash,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def state_folder(environ: Mapping[str, str]) -> Path:
    """$XDG_STATE_HOME/ktops, else ~/.local/state/ktops: for what cannot be had again at will."""
    xdg = environ.get("XDG_STATE_HOME", "")
    base = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".local" / "state"
    return base / "ktops"


def recall(path: Path) -> dict[str, object]:
    """All values of a file by machine; empty where it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path: Path, values: Mapping[str, object]) -> None:
    """Replace the file whole. A folder that cannot be written costs measuring again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(values, file)
        Path(file.name).replace(path)
    except OSError:
        return


def keep(path: Path, key: str, value: object) -> None:
    """Remember the value of one machine beside those of others."""
    remember(path, {**recall(path), key: value})


def cache_file(name: str) -> Path:
    """Where what is measured within seconds is kept: beside the native library it was measured
    with."""
    return cache_folder(os.environ).parent / name
