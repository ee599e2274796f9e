"""How much of the disk a model takes."""

from __future__ import annotations

from pathlib import Path

from ktops.hub.store import StoredModel
from ktops_engine.errors import KtopsError
from ktops_engine.gguf.shards import find_shards


def disk_bytes(model: StoredModel) -> int:
    """Bytes that the files of `model` occupy; of a registered one, its weights."""
    return sum(_allocated(path) for path in model_files(model))


def model_files(model: StoredModel) -> list[Path]:
    """The files that are the model's: of a registered one its weights, else all of its folder."""
    if not model.is_registered:
        return [path for path in model.folder.rglob("*") if not path.is_dir()]
    if model.gguf_path is None:
        return []
    try:
        return list(find_shards(model.gguf_path))
    except KtopsError:
        return [model.gguf_path] if model.gguf_path.exists() else []


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:  # gone since it was listed
        return 0
