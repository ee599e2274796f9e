"""A model by its name as the doctor's target: its needs, and what of it is here."""

from __future__ import annotations

import stat
from pathlib import Path

from ktops.hub.catalogue import DEMO, CatalogueEntry
from ktops.hub.registry import read_registration
from ktops.hub.store import entry_of, weights_of
from ktops.settings import Settings
from ktops_doctor import Target


def target_for(alias: str, settings: Settings) -> Target:
    """What the model `alias` asks of a machine. Raises KtopsError "unknown-model"."""
    entry = entry_of(alias, settings.models_dir)
    return Target(
        name=entry.alias,
        title=entry.title,
        weights_bytes=entry.needs.disk_bytes,
        ram_bytes=entry.needs.ram_bytes,
        vram_bytes=entry.needs.vram_bytes,
        cores=entry.needs.cores,
        present_bytes=_present_bytes(entry, settings.models_dir),
        weights=_weights(entry, settings.models_dir),
        models_dir=str(settings.models_dir.expanduser().absolute()),
        host=settings.host,
        port=settings.port,
    )


def _present_bytes(entry: CatalogueEntry, models_dir: Path) -> int:
    """Bytes of the model's files that are on the disk, finished or not."""
    if entry.weights_repo is None or read_registration(models_dir, entry.alias) is not None:
        return entry.needs.disk_bytes
    paths = (models_dir / entry.alias).rglob("*")
    return min(entry.needs.disk_bytes, sum(map(_file_bytes, paths)))


def _weights(entry: CatalogueEntry, models_dir: Path) -> str:
    """A weight file of the model, '' when there is none, "demo" for the embedded one."""
    if entry.alias == DEMO:
        return DEMO
    weights = weights_of(entry, models_dir)
    return str(weights.absolute()) if weights else ""


def _file_bytes(path: Path) -> int:
    """The size of a file; 0 for a folder and for what may not be looked at."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
