"""What is known of a catalogue model for planning: from its files when they are here, else from
the shapes that ship with ktops."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ktops.hub.catalogue import CatalogueEntry
from ktops.hub.store import State, inspect_model
from ktops.settings import Settings
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

if TYPE_CHECKING:
    from pathlib import Path

    from ktops_engine.plan import ModelFacts

# What planning never reads and a configuration must have.
_FILLED_IN: Mapping[str, Any] = {
    "q_lora_rank": None,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_ids": (),
}


def model_facts(entry: CatalogueEntry, settings: Settings) -> ModelFacts:
    """Exact facts when the model is complete here, else those of its description.

    Raises KtopsError "model-not-described" for a model that is neither.
    """
    stored = inspect_model(entry, settings.models_dir)
    if stored.state is State.COMPLETE and stored.gguf_path is not None:
        return facts_of_path(stored.gguf_path, stored.config_path)
    return described_facts(entry)


def facts_of_path(gguf_path: Path, model_path: Path | None) -> ModelFacts:
    """The facts of weight files; raises KtopsError as opening them does."""
    from ktops_engine.config import EngineConfig
    from ktops_engine.source import open_source

    return open_source(EngineConfig(gguf_path, model_path)).facts


def described_facts(entry: CatalogueEntry) -> ModelFacts:
    """The facts of a Q4_K_M file from the shapes that ship with ktops.

    Raises KtopsError "model-not-described" for a model without one.
    """
    from ktops_engine.model_config import ModelConfig
    from ktops_engine.plan import describe_q4_k_m

    shapes = _shapes()
    if entry.alias not in shapes:
        raise KtopsError(
            "model-not-described",
            text(
                "{model} cannot be planned for before its files are here: ktops has no "
                "description of it",
                model=entry.alias,
            ),
            f"ktops download {entry.alias}",
        )
    shape = dict(shapes[entry.alias])
    if "like" in shape:
        shape = shapes[shape.pop("like")] | shape
    return describe_q4_k_m(ModelConfig(**{**_FILLED_IN, **shape}))


def is_described(entry: CatalogueEntry) -> bool:
    """Whether ktops knows the shape of a model without its files."""
    return entry.alias in _shapes()


@cache
def _shapes() -> Mapping[str, dict[str, Any]]:
    file = resources.files("ktops").joinpath("planning", "model_shapes.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))
