"""Weights shared out over NUMA nodes: a line a node for people, an event a node for programs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from schemas import check

from ktops.launch.serving import Prepared, load_engine
from ktops.output import Mode, Output
from ktops_engine.config import EngineConfig
from ktops_engine.demo import demo_path
from ktops_engine.machine import MachineFacts
from ktops_engine.node_memory import NodeShare
from ktops_engine.source import open_source

GIB = 1 << 30
SHARES = (NodeShare(0, 188 * GIB, 188 * GIB), NodeShare(1, 187 * GIB, None))


@pytest.fixture
def loaded(monkeypatch):
    """`loaded(mode)` shows an engine being loaded whose weights have two nodes."""
    llm = SimpleNamespace(node_shares=SHARES)
    machine = MachineFacts((0,), 2 * GIB, GIB)

    source = open_source(EngineConfig(demo_path()))

    def take(config, on_progress, on_note, *found) -> SimpleNamespace:
        assert found == (machine, source)  # what was planned with is not asked again
        return llm

    monkeypatch.setattr("ktops_engine.llm.LLM.load", take)

    def load(mode: Mode) -> None:
        prepared = Prepared(EngineConfig(demo_path()), machine, source, None, frozenset())
        assert load_engine(Output(mode), prepared, None, None) is llm

    return load


def test_people_get_a_line_for_each_node(loaded, capsys):
    loaded(Mode.HUMAN)
    first, second = capsys.readouterr().err.splitlines()
    assert first.split() == ["node", "0", "188", "GiB", "wanted,", "188", "GiB", "there"]
    assert second.endswith("187 GiB wanted; the kernel does not tell what is there")


def test_programs_get_an_event_for_each_node(loaded, capsys):
    loaded(Mode.JSON)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for event in events:
        check("serve", event)
    assert [(e["event"], e["node"], e["there_bytes"]) for e in events] == [
        ("node", 0, 188 * GIB),
        ("node", 1, None),
    ]
