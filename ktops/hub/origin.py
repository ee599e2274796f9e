"""Where a folder that no catalogue knows was downloaded from, so that it can be mended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ktops.hub.digests import STATE_FOLDER
from ktops.hub.errors import write_failed

_FILE = "origin.json"


@dataclass(frozen=True)
class Origin:
    """What a folder was asked for with: hf:OWNER/NAME or ms:OWNER/NAME, and patterns if any."""

    model: str
    include: tuple[str, ...]

    def download_args(self, folder: Path) -> tuple[str, ...]:
        """What follows `ktops download` to ask for the same again in `folder`."""
        words = [self.model]
        for pattern in self.include:
            words += ["--include", pattern]
        if folder.name != self.model.rpartition("/")[2]:
            words += ["--to", str(folder)]
        return tuple(words)


def write_origin(root: Path, origin: Origin) -> None:
    """Remember where the files of `root` come from. Raises KtopsError of `write_failed`."""
    path = root / STATE_FOLDER / _FILE
    document = {"model": origin.model, "include": list(origin.include)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        raise write_failed(error, root) from error


def read_origin(root: Path) -> Origin | None:
    """Where the files of `root` come from, None when that is not known."""
    try:
        document = json.loads((root / STATE_FOLDER / _FILE).read_text(encoding="utf-8"))
        origin = Origin(document["model"], tuple(document["include"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    words = (origin.model, *origin.include)
    return origin if all(isinstance(word, str) for word in words) else None
