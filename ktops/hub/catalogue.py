"""The models ktops knows by name: its own catalogue.toml, and the user's beside the settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ktops.hub.names import is_model_name
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import Text, text

DEMO = "demo"
USER_CATALOGUE_FILE = "catalogue.toml"


@dataclass(frozen=True)
class Needs:
    """What a machine must offer: bytes of memory, GPU memory and disk, physical CPU cores."""

    ram_bytes: int
    vram_bytes: int
    cores: int
    disk_bytes: int


@dataclass(frozen=True)
class CatalogueEntry:
    """A model by its alias. `weights_repo` is None for a model that no hub is known for.

    `weights_repo` and `config_repo` are names on the hubs; `patterns` select the weight files;
    `download_args` is what follows `ktops download` to fetch it, empty when nothing does.
    """

    alias: str
    title: str
    needs: Needs
    weights_repo: str | None
    patterns: tuple[str, ...]
    config_repo: str | None
    download_args: tuple[str, ...] = ()


def load_catalogue() -> Mapping[str, CatalogueEntry]:
    """Every entry by alias: ktops' own in their order, replaced and followed by the user's.

    Raises KtopsError "invalid-catalogue" naming the user's file and what is wrong in it.
    """
    return MappingProxyType({**_shipped(), **_of_user(user_catalogue_file())})


def user_catalogue_file() -> Path:
    """The user's own catalogue, whether it exists or not."""
    from ktops.settings import user_config_file

    return user_config_file().with_name(USER_CATALOGUE_FILE)


def find_entry(alias: str) -> CatalogueEntry:
    """The entry named `alias`. Raises KtopsError "unknown-model", with the closest name."""
    catalogue = load_catalogue()
    if alias not in catalogue:
        raise unknown_model(alias, catalogue)
    return catalogue[alias]


def local_entry(
    name: str, title: str, size_bytes: int, download_args: tuple[str, ...] = ()
) -> CatalogueEntry:
    """An entry for weights that lie here and that no catalogue knows.

    What it needs is the least that is certain: memory for its `size_bytes`.
    """
    needs = Needs(ram_bytes=size_bytes, vram_bytes=0, cores=1, disk_bytes=size_bytes)
    return CatalogueEntry(name, title, needs, None, (), None, download_args)


def unknown_model(name: str, names: Iterable[str]) -> KtopsError:
    """No model is called `name`; one of `names` may have been meant."""
    if "/" in name or name.endswith(".gguf"):
        return KtopsError(
            "unknown-model",
            text("{name!r} is a path, and a model is chosen by its name", name=name),
            f"ktops serve --gguf-path {name}",
            exit_status=EXIT_USAGE,
        )
    close = get_close_matches(name.lower(), list(names), n=1, cutoff=0.4)
    if close:
        message = text(
            "no model is named {name!r}; did you mean {guess!r}?", name=name, guess=close[0]
        )
    else:
        message = text("no model is named {name!r}", name=name)
    return KtopsError(
        "unknown-model",
        message,
        text("ktops models   (lists the names)"),
        exit_status=EXIT_USAGE,
    )


@cache
def _shipped() -> Mapping[str, CatalogueEntry]:
    content = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
    return {alias: _entry(alias, table) for alias, table in tomllib.loads(content).items()}


def _of_user(path: Path) -> dict[str, CatalogueEntry]:
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _invalid(path, text("it cannot be read: {why}", why=error)) from error
    entries = {}
    for alias, table in tables.items():
        if alias == DEMO or not is_model_name(alias):
            raise _invalid(path, text("[{alias}] cannot be the name of a model", alias=alias))
        try:
            entries[alias] = _entry(alias, table)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise _invalid(
                path,
                text(
                    '[{alias}] needs weights = {{ repo = "OWNER/NAME", patterns = [...] }}, and '
                    "may have title, config = {{ repo = ... }} and needs ({why})",
                    alias=alias,
                    why=error,
                ),
            ) from error
    return entries


def _entry(alias: str, table: Mapping[str, Any]) -> CatalogueEntry:
    """One table of a catalogue. Raises TypeError, KeyError, ValueError for what is wrong in it."""
    unknown = set(table) - {"title", "weights", "config", "needs"}
    if unknown:
        raise ValueError(", ".join(sorted(unknown)))
    weights = table["weights"] if alias != DEMO else {}
    disk_bytes = table.get("needs", {}).get("disk_bytes", 0)
    least = {"ram_bytes": disk_bytes, "vram_bytes": 0, "cores": 1, "disk_bytes": disk_bytes}
    needs = Needs(**{**least, **table.get("needs", {})})
    if not all(type(getattr(needs, field.name)) is int for field in fields(needs)):
        raise TypeError("needs")
    return CatalogueEntry(
        alias=alias,
        title=_string(table.get("title", alias)),
        needs=needs,
        weights_repo=_string(weights["repo"]) if weights else None,
        patterns=tuple(_string(pattern) for pattern in weights["patterns"]) if weights else (),
        config_repo=_string(table["config"]["repo"]) if "config" in table else None,
        download_args=(alias,) if weights else (),
    )


def _string(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(repr(value))
    return value


def _invalid(path: Path, problem: Text) -> KtopsError:
    return KtopsError(
        "invalid-catalogue",
        text("{path} is no catalogue of models: {problem}", path=path, problem=problem),
        text("correct {path}, or move it away", path=path),
        exit_status=EXIT_USAGE,
    )
