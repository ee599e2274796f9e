"""The models ktops knows by name, read from catalogue.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from ktops_engine.errors import EXIT_USAGE, KtopsError

DEMO = "demo"


@dataclass(frozen=True)
class Needs:
    """What a machine must offer: bytes of memory, GPU memory and disk, physical CPU cores."""

    ram_bytes: int
    vram_bytes: int
    cores: int
    disk_bytes: int


@dataclass(frozen=True)
class CatalogueEntry:
    """A model by its alias. `weights_repo` is None for a model that ships with ktops.

    `weights_repo` and `config_repo` are names on Hugging Face; `patterns` select the weight files.
    """

    alias: str
    title: str
    needs: Needs
    weights_repo: str | None
    patterns: tuple[str, ...]
    config_repo: str | None


@cache
def load_catalogue() -> Mapping[str, CatalogueEntry]:
    """Every entry by alias, in the file's order."""
    text = resources.files(__package__).joinpath("catalogue.toml").read_text(encoding="utf-8")
    entries = {alias: _entry(alias, table) for alias, table in tomllib.loads(text).items()}
    return MappingProxyType(entries)


def find_entry(alias: str) -> CatalogueEntry:
    """The entry named `alias`. Raises KtopsError "unknown-model", with the closest name."""
    catalogue = load_catalogue()
    if alias in catalogue:
        return catalogue[alias]
    if "/" in alias or alias.endswith(".gguf"):
        raise KtopsError(
            "unknown-model",
            f"{alias!r} is a path, and a model is chosen by its name",
            f"ktops serve --gguf-path {alias}",
            exit_status=EXIT_USAGE,
        )
    close = get_close_matches(alias.lower(), catalogue, n=1, cutoff=0.4)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    raise KtopsError(
        "unknown-model",
        f"no model is named {alias!r}{guess}",
        "ktops models   (lists the names)",
        exit_status=EXIT_USAGE,
    )


def _entry(alias: str, table: Mapping[str, Any]) -> CatalogueEntry:
    weights = table.get("weights", {})
    return CatalogueEntry(
        alias=alias,
        title=table["title"],
        needs=Needs(**table["needs"]),
        weights_repo=weights.get("repo"),
        patterns=tuple(weights.get("patterns", ())),
        config_repo=table.get("config", {}).get("repo"),
    )
