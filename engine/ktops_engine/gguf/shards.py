"""Which files make up a model: from any shard, from a single file, or from a folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.gguf.values import unreadable
from ktops_engine.text import Text, joined, text

_SHARD_NAME = re.compile(r"^(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_MAX_NAMES_SHOWN = 8


@dataclass(frozen=True)
class ShardName:
    """A name of the form PREFIX-00001-of-00009.gguf; `number` counts from 1."""

    prefix: str
    number: int
    count: int

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        match = _SHARD_NAME.match(name)
        if match is None:
            return None
        return cls(match["prefix"], int(match["number"]), int(match["count"]))

    def sibling(self, number: int) -> str:
        return f"{self.prefix}-{number:05d}-of-{self.count:05d}.gguf"


def find_shards(path: Path) -> tuple[Path, ...]:
    """All files of the model at `path`, in shard order.

    `path` is a file, any shard of a split model, or a folder that holds exactly one model, itself
    or in one subfolder (the layout of model hubs). Raises KtopsError: gguf-not-found,
    gguf-unreadable, gguf-ambiguous, gguf-missing-shards, gguf-corrupt (a name such as 3-of-2).
    """
    try:
        if path.is_dir():
            return _shards_of(_only_model_in(path))
        if not path.exists():
            raise _not_found(path)
        return _shards_of(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _shards_of(path: Path) -> tuple[Path, ...]:
    name = ShardName.parse(path.name)
    if name is None:
        return (path,)
    if not 1 <= name.number <= name.count:
        raise KtopsError(
            "gguf-corrupt",
            text(
                "{name} says it is shard {number} of {count}.",
                name=path.name,
                number=name.number,
                count=name.count,
            ),
            text(
                "Restore the name the file was published under: ls '{folder}'", folder=path.parent
            ),
        )
    present = set(_names_in(path.parent))
    wanted = [name.sibling(number) for number in range(1, name.count + 1)]
    missing = [wanted_name for wanted_name in wanted if wanted_name not in present]
    if missing:
        raise KtopsError(
            "gguf-missing-shards",
            text(
                "{count} of the {total} shards of {model} are missing in {folder}: {names}.",
                count=len(missing),
                total=name.count,
                model=name.prefix,
                folder=path.parent,
                names=_shorten(missing),
            ),
            text("Download the missing files into that folder: ls '{folder}'", folder=path.parent),
        )
    return tuple(path.parent / wanted_name for wanted_name in wanted)


def _only_model_in(folder: Path) -> Path:
    """One file of the only model in a folder, or in its only subfolder with a model."""
    models = _models_in(folder)
    if not models:
        for child in _names_in(folder):
            if (folder / child).is_dir() and not child.startswith("."):
                models |= _models_in(folder / child)
    if not models:
        raise KtopsError(
            "gguf-not-found",
            text("There is no .gguf file in {folder} or in its subfolders.", folder=folder),
            text(
                "ls -R '{folder}'; give --gguf-path the folder that holds the model", folder=folder
            ),
        )
    if len(models) > 1:
        shown = [str(first.relative_to(folder)) for first in models.values()]
        raise KtopsError(
            "gguf-ambiguous",
            text(
                "{folder} holds {count} models: {names}.",
                folder=folder,
                count=len(models),
                names=_shorten(sorted(shown)),
            ),
            text("Name one of them: --gguf-path '{path}'", path=folder / min(shown)),
        )
    return next(iter(models.values()))


def _models_in(folder: Path) -> dict[tuple[Path, str, int], Path]:
    """One file of each model directly in `folder`, by (folder, name, shard count)."""
    models: dict[tuple[Path, str, int], list[str]] = defaultdict(list)
    for file_name in _names_in(folder):
        if not file_name.endswith(".gguf") or file_name.startswith("."):
            continue
        shard = ShardName.parse(file_name)
        key = (folder, file_name, 1) if shard is None else (folder, shard.prefix, shard.count)
        models[key].append(file_name)
    return {key: folder / min(names) for key, names in models.items()}


def _names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _not_found(path: Path) -> KtopsError:
    neighbours: list[str] = []
    if path.parent.is_dir():
        neighbours = [name for name in _names_in(path.parent) if name.endswith(".gguf")]
    if path.is_symlink():
        what = text("{path} is a link to a file that does not exist.", path=path)
    else:
        what = text("{path} does not exist.", path=path)
    if neighbours:
        what = text(
            "{problem} The folder holds: {names}.", problem=what, names=_shorten(neighbours)
        )
    return KtopsError("gguf-not-found", what, f"ls '{path.parent}'")


def _shorten(names: Iterable[str]) -> Text:
    listed = list(names)
    more = len(listed) - _MAX_NAMES_SHOWN
    shown = joined(listed[:_MAX_NAMES_SHOWN])
    return text("{names} and {count} more", names=shown, count=more) if more > 0 else shown
