"""What a build would be now, and how the one that is there differs from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktops_engine.native import detection
from ktops_engine.native.build import build_native
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.detection import detect, differences


def nodes_of(folder: Path, *memory: int) -> Path:
    """A sysfs folder with a node for each amount of memory."""
    for index, amount in enumerate(memory):
        node = folder / f"node{index}"
        node.mkdir(parents=True)
        (node / "meminfo").write_text(f"Node {index} MemTotal: {amount} kB\n")
    return folder


@pytest.fixture
def one_node(tmp_path: Path) -> Path:
    return nodes_of(tmp_path / "one", 8)


@pytest.fixture
def built(tiny_sources: Path, monkeypatch: pytest.MonkeyPatch) -> BuildInfo:
    monkeypatch.setattr(detection, "find_sources", lambda: tiny_sources)
    return replace(build_native("off"), num_nodes=1)


def test_a_build_of_this_machine_differs_in_nothing(built: BuildInfo, one_node: Path) -> None:
    assert differences(built, detect("auto", {}, one_node)) == []


def test_numa_off_where_two_nodes_have_memory_is_named(built: BuildInfo, tmp_path: Path) -> None:
    now = detect("auto", {}, nodes_of(tmp_path / "two", 8, 8, 0))
    assert now.nodes == (0, 1)
    assert differences(built, now) == [
        "built with NUMA off, and it would be on here: 2 nodes have memory"
    ]


def test_numa_on_where_nobody_asks_for_it_is_named(built: BuildInfo, one_node: Path) -> None:
    on = replace(built, numa=True, numa_origin="--numa on")
    assert differences(on, detect("auto", {}, one_node)) == [
        "built with NUMA on, and it would be off here: one node has memory"
    ]


def test_another_number_of_nodes_is_named(built: BuildInfo, tmp_path: Path) -> None:
    spread = replace(built, numa=True, num_nodes=2)
    now = detect("auto", {}, nodes_of(tmp_path / "four", 8, 8, 8, 8))
    assert differences(spread, now) == ["built where 2 nodes had memory, here 4 have"]


def test_a_variable_that_decides_is_the_reason(built: BuildInfo, one_node: Path) -> None:
    now = detect("auto", {"USE_NUMA": "1"}, one_node)
    assert now.numa
    assert now.numa_reason == "asked for by USE_NUMA=1"
    assert detect("off", {"USE_NUMA": "1"}, one_node).numa_reason == "asked for by --numa off"


def test_other_sources_and_another_compiler_make_it_stale(built: BuildInfo, one_node: Path) -> None:
    old = replace(built, sources_hash="0" * 64, compiler="g++ 11.1.0")
    found = differences(old, detect("auto", {}, one_node))
    assert [line.partition(":")[0] for line in found] == ["stale", "stale"]
    assert "g++ 11.1.0" in found[1]


def test_a_machine_without_a_compiler_says_so(
    built: BuildInfo, one_node: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    now = detect("auto", {}, one_node)
    assert now.toolchain is None
    assert now.problem is not None
    assert now.problem.code == "compiler-missing"
    assert differences(built, now) == []
