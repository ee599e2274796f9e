"""From a word on the command line to repositories, patterns and a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ktops.hub.catalogue import DEMO, find_entry
from ktops.hub.origin import Origin
from ktops.hub.registry import read_registration
from ktops.hub.store import CONFIG_FOLDER
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

# What a configuration repository holds that ktops reads; its weights and its code stay there.
CONFIG_INCLUDE = ("*.json", "*.jinja", "*.model", "LICENSE*")
CONFIG_EXCLUDE = ("*.py", "*.safetensors", "*.safetensors.index.json", "*/*")
WEIGHTS_INCLUDE = ("*.gguf", *CONFIG_INCLUDE)
WEIGHTS_EXCLUDE = ("*.py", "*.safetensors", "*.safetensors.index.json")
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PREFIXES = {"hf": "hf", "ms": "modelscope"}


@dataclass(frozen=True)
class Part:
    """Files of one repository, and the folder below the model's that they go to."""

    repo: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    subfolder: str


@dataclass(frozen=True)
class Request:
    """What to fetch: `name` for people, `source` "auto", "hf" or "modelscope", `root` its folder.

    `chosen` says whether the patterns select one model, by the catalogue or by the user.
    """

    name: str
    source: str
    root: Path
    parts: tuple[Part, ...]
    chosen: bool

    @property
    def origin(self) -> Origin | None:
        """Where its files come from, None for a model of the catalogue."""
        if ":" not in self.name:
            return None
        return Origin(self.name, self.parts[0].include if self.chosen else ())


def resolve_request(
    model: str,
    models_dir: Path,
    *,
    include: tuple[str, ...] = (),
    to: Path | None = None,
    source: str = "auto",
) -> Request:
    """What `ktops download MODEL` means.

    MODEL is a name of the catalogue, hf:OWNER/NAME or ms:OWNER/NAME. Raises KtopsError:
    "unknown-model", "invalid-repository", "source-conflict", "nothing-to-download", "registered".
    """
    prefix, separator, repo = model.partition(":")
    if separator or _REPO.fullmatch(model):
        return _repository(model, prefix, repo, models_dir, include, to, source)
    entry = find_entry(model)
    registration = read_registration(models_dir, model)
    if registration is not None and to is None:
        raise KtopsError(
            "registered",
            text(
                "{name} is registered: its files are in {folder}",
                name=model,
                folder=registration.weights.parent,
            ),
            text(
                "ktops models remove {name}   (forgets that, and leaves the files alone)",
                name=model,
            ),
        )
    if entry.alias == DEMO or entry.weights_repo is None:
        raise KtopsError(
            "nothing-to-download",
            text("{name} comes with ktops", name=entry.alias),
            f"ktops serve {entry.alias}",
            exit_status=EXIT_USAGE,
        )
    parts = [Part(entry.weights_repo, include or entry.patterns, (), "")]
    if entry.config_repo:
        parts.append(Part(entry.config_repo, CONFIG_INCLUDE, CONFIG_EXCLUDE, CONFIG_FOLDER))
    return Request(entry.alias, source, _root(to, models_dir / model), tuple(parts), True)


def _repository(
    model: str,
    prefix: str,
    repo: str,
    models_dir: Path,
    include: tuple[str, ...],
    to: Path | None,
    source: str,
) -> Request:
    if prefix not in _PREFIXES or not _REPO.fullmatch(repo):
        bare = model.rpartition(":")[2]
        hint = f"ktops download hf:{bare if _REPO.fullmatch(bare) else 'OWNER/NAME'}"
        raise KtopsError(
            "invalid-repository",
            text("{name!r} names no repository: hf:OWNER/NAME and ms:OWNER/NAME do", name=model),
            hint,
            exit_status=EXIT_USAGE,
        )
    if source not in ("auto", _PREFIXES[prefix]):
        raise KtopsError(
            "source-conflict",
            text("{name} and --source {source} name different hubs", name=model, source=source),
            f"ktops download {model}",
            exit_status=EXIT_USAGE,
        )
    part = Part(repo, include or WEIGHTS_INCLUDE, () if include else WEIGHTS_EXCLUDE, "")
    root = _root(to, models_dir / repo.partition("/")[2])
    return Request(model, _PREFIXES[prefix], root, (part,), bool(include))


def _root(to: Path | None, default: Path) -> Path:
    return (to or default).expanduser().absolute()
