"""The models folder: which catalogue models are there, and whether they are whole.

A model lives in `<models_dir>/<alias>/`, its weight files there or in one folder below, its
config-only folder (config.json, tokenizer.json, ...) in `<models_dir>/<alias>/config/`. The demo
model ships inside the package.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ktops.hub.catalogue import DEMO, CatalogueEntry, load_catalogue
from ktops.settings import Settings
from ktops_engine.errors import KtopsError

CONFIG_FOLDER = "config"


class State(StrEnum):
    """COMPLETE: the weights open; INCOMPLETE: something is there and does not; ABSENT: nothing."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    ABSENT = "not-downloaded"


@dataclass(frozen=True)
class StoredModel:
    """A catalogue model as the disk has it.

    `folder` is where it belongs, `gguf_path` a weight file when there is one, `config_path` the
    config-only folder when it has a config.json, `problem` what is missing when incomplete.
    `size_bytes` counts the tensors of a complete model, else what the catalogue says.
    """

    entry: CatalogueEntry
    folder: Path
    state: State
    size_bytes: int
    gguf_path: Path | None = None
    config_path: Path | None = None
    problem: str = ""


def inspect_models(models_dir: Path) -> list[StoredModel]:
    """Every catalogue model as `inspect_model` sees it, in the catalogue's order."""
    return [inspect_model(entry, models_dir) for entry in load_catalogue().values()]


def inspect_model(entry: CatalogueEntry, models_dir: Path) -> StoredModel:
    """What of `entry` is on the disk. Opens the headers of its weights; reads no tensor."""
    folder = _demo_folder() if entry.alias == DEMO else models_dir / entry.alias
    config_path = next(
        (path for path in (folder / CONFIG_FOLDER, folder) if (path / "config.json").is_file()),
        None,
    )
    shards = sorted(path for path in folder.rglob("*.gguf") if ".cache" not in path.parts)
    if not shards:
        started = any(folder.rglob("*.incomplete"))
        return StoredModel(
            entry=entry,
            folder=folder,
            state=State.INCOMPLETE if started else State.ABSENT,
            size_bytes=entry.needs.disk_bytes,
            config_path=config_path,
            problem="a download was started, no weight file is finished" if started else "",
        )
    size_bytes, problem = _open(shards[0])
    return StoredModel(
        entry=entry,
        folder=folder,
        state=State.INCOMPLETE if problem else State.COMPLETE,
        size_bytes=size_bytes or entry.needs.disk_bytes,
        gguf_path=shards[0],
        config_path=config_path,
        problem=problem,
    )


def fetch_command(entry: CatalogueEntry, settings: Settings) -> str:
    """The shell command that makes `entry` whole where these settings look for it."""
    if entry.alias == DEMO:
        return "pip install --force-reinstall --no-deps ktops"
    command = ["ktops", "download", entry.alias]
    if settings.origins.get("models_dir") == "--models-dir":
        command += ["--models-dir", str(settings.models_dir)]
    return shlex.join(command)


def _demo_folder() -> Path:
    from ktops_engine.demo import demo_path

    return demo_path()


def _open(shard: Path) -> tuple[int, str]:
    """Bytes of tensor data behind `shard`, or 0 and what is wrong with it."""
    from ktops_engine.gguf import open_gguf

    try:
        return open_gguf(shard).total_bytes, ""
    except KtopsError as error:
        return 0, error.message
