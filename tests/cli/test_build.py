"""`ktops build --info`, and the doctor's checks before a build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ktops_engine.native import load
from ktops_engine.native.cache import RECORD, BuildInfo


@pytest.fixture
def copied(native_build: BuildInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of a build in a cache of its own, to be changed."""
    folder = tmp_path / "cache/native" / native_build.path.parent.name
    shutil.copytree(native_build.path.parent, folder)
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "cache"))
    return folder / RECORD


def change(record: Path, **fields: object) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), **fields}))


def test_info_says_what_was_built_and_that_it_is_current(ktops, copied):
    human = ktops("build", "--info").stdout
    assert "as it was built\n" in human
    assert "\nkernels   scalar, " in human
    assert "\nflags     all: -O3 -std=c++20" in human
    assert "\nCPU       " in human
    document = ktops("build", "--info", "--json").document
    assert document["state"] == "current"
    assert document["built"]["sources_hash"] == document["now"]["sources_hash"]
    assert document["runs"]["isa"] in document["runs"]["isa_available"]


def test_info_names_what_makes_a_build_stale(ktops, copied):
    change(copied, sources_hash="0" * 64)
    assert ktops("build", "--info", "-q").stdout == "stale\n"
    human = ktops("build", "--info").stdout
    assert "to be built again: stale: built from other sources (000000000000, these are" in human
    assert human.endswith("  Fix: ktops build\n")


def test_info_names_numa_that_is_asked_for_and_was_not_built(ktops, copied, monkeypatch):
    change(copied, numa=False)
    monkeypatch.setenv("USE_NUMA", "1")
    document = ktops("build", "--info", "--json").document
    assert document["differences"] == [
        "built with NUMA off, and it would be on here: asked for by USE_NUMA=1"
    ]
    assert document["now"]["numa_reason"] == "asked for by USE_NUMA=1"


def test_info_without_a_build_says_how_to_make_one(ktops, tmp_path, monkeypatch):
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "empty"))
    human = ktops("build", "--info").stdout
    assert human.startswith("no kernels are built yet\n")
    assert human.endswith("  Fix: ktops build\n")
    document = ktops("build", "--info", "--json").document
    assert (document["state"], document["built"], document["runs"]) == ("missing", None, None)


def test_info_survives_a_library_that_does_not_load(ktops, copied, monkeypatch):
    monkeypatch.setattr(load, "ABI_VERSION", 999)
    document = ktops("build", "--info", "--json").document
    assert document["runs"] is None
    assert "interface version" in document["load_error"]
    assert "interface version" in ktops("build", "--info").stdout


def test_info_speaks_chinese(ktops, copied):
    human = ktops("build", "--info", "--lang", "zh").stdout
    assert human.startswith("编译时的情况\n")
    assert "已是最新" in human


def test_the_checks_of_the_toolchain_come_first_and_stop_a_build(ktops, tmp_path, monkeypatch):
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = ktops("build")
    assert ran.status == 1
    assert "  check   " in ran.stderr
    assert "error: the native kernels cannot be built here:\n  cc.version  " in ran.stderr
    error = ktops("build", "--json").document["error"]
    assert error["code"] == "checks-failed"


def test_the_checks_are_part_of_the_document(ktops, native_build):
    checks = {check["id"]: check for check in ktops("build", "--json").document["checks"]}
    assert {"cc.version", "cc.cmake", "cc.ninja", "disk.cache"} <= set(checks)
    assert checks["cc.version"]["status"] == "ok"
