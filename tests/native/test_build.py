"""The build cache: hits, staleness, force, several at once, failures that explain themselves."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from ktops_engine.errors import KtopsError
from ktops_engine.native import build, cache, sources, toolchain
from ktops_engine.native.build import build_native, find_current
from ktops_engine.native.flags import compiled_flags


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


CAUSES = [
    ("error writing to /tmp/cc.s: No space left on device", "disk is full", "df -h"),
    ("cc1plus: out of memory allocating 65536 bytes", "out of memory", "PARALLEL_LEVEL=1"),
    ("g++: fatal error: Killed signal terminated program cc1plus", "of memory", "PARALLEL_LEVEL=1"),
    ("x.h:3: fatal error: stdio.h: No such file or directory", "incomplete", "libc6-dev"),
    ("/usr/bin/ld: cannot find -lstdc++: No such file or directory", "incomplete", "libc6-dev"),
    ("g++: error: unrecognized command-line option '-mavx512vnni'", "option", "--version"),
    ("g++: error: unrecognized command line option '-std=c++20'", "too old", "--version"),
    ("/tmp/cc.s:7: Error: no such instruction: `tdpbf16ps %tmm1'", "AMX", "binutils"),
    ("/tmp/cc.s:9: Error: bad register name `%zmm17'", "AVX-512", "binutils"),
    ("CMake 3.22 or higher is required.  You are running 3.10", "CMake is too old", "cmake ninja"),
    ("ninja: error: manifest 'build.ninja' still dirty after 100 tries", "clock", "date"),
    ("a.cpp:4: internal compiler error: in foo", "crashed", "reinstall g++"),
    ("/cache/x.o: Permission denied", "may not be written", "ls -ld"),
    ("the end of it", "end of the log tells why", "ktops build --force"),
]


@pytest.mark.parametrize(("line", "words", "command"), CAUSES)
def test_the_probable_cause_of_a_failure_is_named(
    tiny_sources: Path, tmp_path: Path, monkeypatch, line, words, command
) -> None:
    failure = failing_build(tmp_path, monkeypatch, f"cat <<'END'\n{line}\nEND\nexit 1")
    assert failure.code == "build-failed"
    assert words in failure.message
    assert command in failure.hint
    assert line in failure.message


def test_a_build_that_the_kernel_kills_ran_out_of_memory(
    tiny_sources: Path, tmp_path: Path, monkeypatch
) -> None:
    failure = failing_build(tmp_path, monkeypatch, "kill -9 $$")
    assert "out of memory" in failure.message
    assert failure.hint == "CMAKE_BUILD_PARALLEL_LEVEL=1 ktops build"


def failing_build(tmp_path: Path, monkeypatch, script: str) -> KtopsError:
    cmake = fake_program(tmp_path / "bin", "cmake", script)
    chosen = toolchain.Toolchain(cmake, cmake, toolchain.Compiler(cmake, "g++ 12"))
    monkeypatch.setattr(build, "find_toolchain", lambda: chosen)
    with pytest.raises(KtopsError) as caught:
        build_native()
    return caught.value


def test_an_interrupted_build_ends_the_compiler_and_leaves_nothing(
    tiny_sources: Path, tmp_path: Path, monkeypatch
) -> None:
    def interrupt(line: str) -> None:
        compiler.append(int(line))
        raise KeyboardInterrupt

    compiler: list[int] = []
    cmake = fake_program(tmp_path / "bin", "cmake", "sleep 1000 & echo $!; wait")
    chosen = toolchain.Toolchain(cmake, cmake, toolchain.Compiler(cmake, "g++ 12"))
    real = build.find_toolchain
    monkeypatch.setattr(build, "find_toolchain", lambda: chosen)
    with pytest.raises(KeyboardInterrupt):
        build_native(on_line=interrupt)
    monkeypatch.setattr(build, "find_toolchain", real)
    deadline = time.monotonic() + 60
    while is_running(compiler[0]):
        assert time.monotonic() < deadline, "the compiler still runs"
        time.sleep(0.01)
    assert {path.name for path in (tmp_path / "cache/native").iterdir()} == {"lock"}
    assert build_native().path.is_file()


def is_running(pid: int) -> bool:
    """Whether the process does anything: a dead one may still wait to be buried."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_killed_build_left_is_removed_by_the_next(
    tiny_sources: Path, tmp_path: Path
) -> None:
    leftover = tmp_path / "cache/native" / f"{cache.SCRATCH}abc"
    leftover.mkdir(parents=True)
    (leftover / "half.o").write_bytes(b"x")
    build_native()
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")]
)
def test_a_disk_that_takes_no_scratch_folder_is_named(
    tiny_sources: Path, monkeypatch, number, words
) -> None:
    def refuse(**given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(build.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(KtopsError, match=words) as caught:
        build_native()
    assert caught.value.code == "cache-not-writable"


def test_a_build_records_what_it_detected(tiny_sources: Path, monkeypatch) -> None:
    monkeypatch.setenv("USE_NUMA", "1")
    built = build_native()
    assert (built.numa, built.numa_origin) == (True, "USE_NUMA=1")
    assert built.num_nodes >= 1
    assert "-fPIC" in built.flags["all"]
    assert cache.newest_build(built.path.parent.parent) == built


def test_a_record_without_what_is_known_now_is_no_build(tiny_sources: Path) -> None:
    built = build_native()
    record = built.path.parent / cache.RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), "flags": None}))
    assert find_current() is None


def test_units_and_options_are_read_from_what_cmake_wrote(tmp_path: Path) -> None:
    def entry(file: str, options: str) -> dict[str, str]:
        return {"file": file, "command": f"g++ -I/include -O3 {options} -o x.o -c {file}"}

    entries = [
        entry("/src/pool.cpp", "-DKTOPS_NUMA"),
        entry("/src/isa/scalar.cpp", ""),
        entry("/src/isa/avx2.cpp", "-mavx2 -mfma"),
    ]
    (tmp_path / "compile_commands.json").write_text(json.dumps(entries))
    assert compiled_flags(tmp_path) == (
        ["scalar", "avx2"],
        {"all": "-O3", "scalar": "", "avx2": "-mavx2 -mfma"},
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"file": 1}]'])
def test_a_record_of_cmake_that_is_none_tells_nothing(tmp_path: Path, content) -> None:
    (tmp_path / "compile_commands.json").write_text(content)
    isa, _ = compiled_flags(tmp_path)
    assert isa == []


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
