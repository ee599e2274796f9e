"""The inference engine of ktops. Importing this package imports neither torch nor the server.

>>> from ktops_engine import LLM, EngineConfig, SamplingParams
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.types import FinishReason, LoadProgress, SamplingParams, StepOutput

if TYPE_CHECKING:
    from ktops_engine.llm import LLM

__all__ = [
    "LLM",
    "EngineConfig",
    "FinishReason",
    "KtopsError",
    "LoadProgress",
    "SamplingParams",
    "StepOutput",
]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from ktops_engine.llm import LLM  # torch comes with it

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
