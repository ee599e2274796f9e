"""The build cache: hits, staleness, force, several at once, failures that explain themselves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ktops_engine.errors import KtopsError
from ktops_engine.native import build, cache, sources, toolchain
from ktops_engine.native.build import build_native, find_current


def fake_program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_build_is_made_once_and_found_again(tiny_sources: Path, tmp_path: Path) -> None:
    assert find_current() is None
    lines: list[str] = []
    first = build_native(on_line=lines.append)
    assert lines, "the compiler's lines are passed on"
    assert first.path.is_relative_to(tmp_path / "cache" / "native")
    assert "tiny.cpp" in first.log.read_text()
    again: list[str] = []
    assert build_native(on_line=again.append) == first
    assert not again
    assert find_current() == first
    leftovers = {path.name for path in first.path.parent.parent.iterdir()}
    assert leftovers == {first.path.parent.name, "lock"}


def test_changed_sources_make_a_build_stale(tiny_sources: Path) -> None:
    first = build_native()
    source = tiny_sources / "src" / "tiny.cpp"
    source.write_text(source.read_text() + "// changed\n")
    assert find_current() is None
    second = build_native()
    assert second.path != first.path
    assert find_current() == second


def test_force_builds_again_in_the_same_place(tiny_sources: Path) -> None:
    first = build_native()
    before = first.path.stat().st_ino
    second = build_native(force=True)
    assert second.path == first.path
    assert second.path.stat().st_ino != before


def test_a_damaged_build_is_not_current_and_is_replaced(tiny_sources: Path) -> None:
    first = build_native()
    first.path.write_bytes(first.path.read_bytes()[:100])
    assert find_current() is None
    assert build_native().path.stat().st_size > 100


def test_the_numa_choice_made_last_is_the_current_one(tiny_sources: Path, monkeypatch) -> None:
    for numa in ("on", "off"):
        built = build_native(numa)
        os.utime(built.path.parent / cache.RECORD, (1, 1))
    assert build_native("on").numa
    current = find_current()
    assert current is not None
    assert current.numa
    monkeypatch.setenv("USE_NUMA", "0")
    current = find_current()
    assert current is not None
    assert not current.numa


def test_builds_at_the_same_time_wait_for_the_first(tiny_sources: Path) -> None:
    results: list[object] = []
    lines: list[str] = []

    def work() -> None:
        results.append(build_native(on_line=lines.append))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert results[0] == results[1] == results[2]
    assert sum("Linking" in line for line in lines) == 1


def test_without_a_compiler_the_error_says_how_to_get_one(
    tiny_sources: Path, tmp_path: Path, monkeypatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    built = build_native()
    monkeypatch.setenv("PATH", str(empty))
    with pytest.raises(KtopsError) as caught:
        build_native()
    assert caught.value.code == "compiler-missing"
    assert caught.value.hint == "sudo apt-get install g++"
    assert find_current() == built, "what was built before still serves"


def test_an_old_compiler_is_refused_and_a_newer_one_beside_it_used(
    tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "bin"
    fake_program(folder, "g++", 'echo "9.4.0"')
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(KtopsError) as caught:
        toolchain.find_compiler()
    assert caught.value.code == "compiler-too-old"
    assert "apt-get install g++-11" in caught.value.hint
    newer = fake_program(folder, "g++-12", 'echo "12.1.0"')
    assert toolchain.find_compiler().path == newer


def test_cmake_missing_names_pip(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "bin"
    fake_program(folder, "g++", 'echo "13.2.0"')
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(toolchain.sys, "executable", str(folder / "python"))
    with pytest.raises(KtopsError) as caught:
        toolchain.find_toolchain()
    assert caught.value.code == "cmake-missing"
    assert "pip install cmake ninja" in caught.value.hint


def test_a_failing_build_shows_the_end_of_the_log_and_leaves_nothing(
    tiny_sources: Path, tmp_path: Path
) -> None:
    (tiny_sources / "src" / "tiny.cpp").write_text("int broken = ;\n")
    with pytest.raises(KtopsError) as caught:
        build_native()
    assert caught.value.code == "build-failed"
    assert "int broken" in caught.value.message
    root = tmp_path / "cache" / "native"
    assert {path.name for path in root.iterdir()} == {"lock", "last-failure.log"}
    assert str(root / "last-failure.log") in caught.value.message
    assert find_current() is None


@pytest.mark.parametrize(
    ("line", "words", "command"),
    [
        ("error writing to /tmp/cc.s: No space left on device", "disk is full", "df -h"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "out of memory", "free"),
        ("x.h:3: fatal error: stdio.h: No such file or directory", "incomplete", "libc6-dev"),
        ("g++: error: unrecognized command-line option '-mavx512vnni'", "option", "--version"),
    ],
)
def test_the_probable_cause_of_a_failure_is_named(
    tiny_sources: Path, tmp_path: Path, monkeypatch, line, words, command
) -> None:
    folder = tmp_path / "bin"
    cmake = fake_program(folder, "cmake", f'echo "{line}"; exit 1')
    chosen = toolchain.Toolchain(cmake, cmake, toolchain.Compiler(cmake, "g++ 12"))
    monkeypatch.setattr(build, "find_toolchain", lambda: chosen)
    with pytest.raises(KtopsError, match=words) as caught:
        build_native()
    assert caught.value.code == "build-failed"
    assert command in caught.value.hint


def test_a_cache_that_cannot_be_written_is_named(tiny_sources: Path, tmp_path, monkeypatch) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where the cache should be")
    monkeypatch.setenv("KTOPS_CACHE", str(occupied))
    with pytest.raises(KtopsError) as caught:
        build_native()
    assert caught.value.code == "cache-not-writable"
    assert str(occupied) in caught.value.message


def test_flags_meant_for_other_programs_do_not_reach_the_build(
    tiny_sources: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CXXFLAGS", "-this-is-no-flag")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert build_native().path.is_file()


def test_the_cache_folder_follows_the_environment(tmp_path: Path) -> None:
    assert cache.cache_folder({"KTOPS_CACHE": "/a"}) == Path("/a/native")
    assert cache.cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/ktops/native")
    relative = cache.cache_folder({"XDG_CACHE_HOME": "not/absolute"})
    assert relative == Path.home() / ".cache/ktops/native"


@pytest.mark.parametrize(("memory", "expected"), [(["8", "8"], True), (["8", "0"], False)])
def test_numa_is_for_more_than_one_node_with_memory(tmp_path: Path, memory, expected) -> None:
    for index, amount in enumerate(memory):
        node = tmp_path / f"node{index}"
        node.mkdir()
        (node / "meminfo").write_text(f"Node {index} MemTotal:       {amount} kB\n")
    assert toolchain.wants_numa("auto", {}, tmp_path) is expected
    assert toolchain.wants_numa("auto", {"USE_NUMA": "1"}, tmp_path) is True
    assert toolchain.wants_numa("auto", {"USE_NUMA": "0"}, tmp_path) is False
    assert toolchain.wants_numa("off", {"USE_NUMA": "1"}, tmp_path) is False


def test_a_strange_use_numa_is_refused() -> None:
    with pytest.raises(KtopsError) as caught:
        toolchain.wants_numa("auto", {"USE_NUMA": "yes"})
    assert caught.value.code == "bad-use-numa"


def test_the_hash_covers_what_is_compiled_and_nothing_else(tiny_sources: Path) -> None:
    before = sources.hash_sources(tiny_sources)
    (tiny_sources / "README.md").write_text("words")
    assert sources.hash_sources(tiny_sources) == before
    (tiny_sources / "src" / "more.h").write_text("int more();")
    assert sources.hash_sources(tiny_sources) != before


def test_the_sources_of_this_installation_are_found() -> None:
    assert (sources.find_sources() / "include" / "ktops.h").is_file()
