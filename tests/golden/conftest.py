"""The embedded model, loaded once for the group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ktops_engine import LLM, EngineConfig
from ktops_engine.demo import demo_path


@pytest.fixture(scope="session")
def demo(native_build: object) -> Iterator[LLM]:
    llm = LLM.load(EngineConfig(demo_path(), demo_path()))
    yield llm
    llm.shutdown()
