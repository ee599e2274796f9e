"""The ELF reader, on libraries that a compiler made a moment ago and on damaged ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ktops_doctor.elf import ElfError, read_versions

VERSIONS = """
GLIBCXX_3.4 { global: first; local: *; };
GLIBCXX_3.4.29 { global: second; } GLIBCXX_3.4;
CXXABI_1.3 { global: third; };
"""


def compile_library(folder: Path, name: str, source: str, *flags: str) -> Path:
    path = folder / name
    (folder / f"{name}.c").write_text(source)
    command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-o", str(path), f"{path}.c", *flags]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small libstdc++.so.6 that ends at 3.4.29, and a library that needs two of its versions."""
    if shutil.which("gcc") is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("elf")
    (folder / "versions.map").write_text(VERSIONS)
    old = compile_library(
        folder,
        "libstdc++.so.6",
        "int first(void){return 1;} int second(void){return 2;} int third(void){return 3;}",
        f"-Wl,--version-script={folder}/versions.map",
        "-Wl,-soname,libstdc++.so.6",
    )
    user = compile_library(
        folder,
        "libuser.so",
        "int second(void); int third(void); int use(void){return second()+third();}",
        str(old),
    )
    return old, user


def test_definitions_are_read(libraries):
    old, _ = libraries
    versions = read_versions(old)
    assert versions.defines == {"libstdc++.so.6", "GLIBCXX_3.4", "GLIBCXX_3.4.29", "CXXABI_1.3"}
    assert versions.needs == {}


def test_needs_are_read_by_library(libraries):
    _, user = libraries
    versions = read_versions(user)
    assert versions.needs == {"libstdc++.so.6": {"GLIBCXX_3.4.29", "CXXABI_1.3"}}
    assert versions.defines == frozenset()


def test_a_stripped_library_is_read_all_the_same(libraries, tmp_path):
    old, _ = libraries
    copy = tmp_path / "stripped.so"
    subprocess.run(["strip", "-s", "-o", str(copy), str(old)], check=True)
    assert read_versions(copy) == read_versions(old)


def test_the_systems_own_library_agrees_with_readelf():
    from ktops_doctor import LiveHost
    from ktops_doctor.libraries import system_libstdcxx

    path = system_libstdcxx(LiveHost())
    if path is None or shutil.which("readelf") is None:
        pytest.skip("no libstdc++ or no readelf here")
    command = ["readelf", "-V", "-W", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    section = text.partition("Version definition section")[2]
    section = section.partition("Version needs section")[0]
    expected = {
        line.rpartition("Name: ")[2].strip() for line in section.splitlines() if "Rev: 1" in line
    }
    assert read_versions(Path(path)).defines == expected


def test_a_weak_need_is_no_need(libraries, tmp_path):
    """The loader only warns when such a version is missing."""
    _, user = libraries
    data = bytearray(user.read_bytes())
    # vna_hash and vna_flags of the entry: its hash identifies it in the file.
    digest = 0
    for byte in b"GLIBCXX_3.4.29":
        digest = (digest << 4) + byte
        high = digest & 0xF0000000
        digest = (digest ^ (high >> 24)) & ~high & 0xFFFFFFFF
    at = data.index(digest.to_bytes(4, "little") + b"\0\0")
    data[at + 4] = 2
    weak = tmp_path / "weak.so"
    weak.write_bytes(data)
    assert read_versions(weak).needs == {"libstdc++.so.6": {"CXXABI_1.3"}}


def test_wherever_it_is_cut_the_file_is_refused_or_read_whole(libraries, tmp_path):
    old, _ = libraries
    data, whole = old.read_bytes(), read_versions(old)
    cut = tmp_path / "cut.so"
    for length in range(0, len(data), 61):
        cut.write_bytes(data[:length])
        try:
            assert read_versions(cut) == whole
        except ElfError:
            continue


def test_no_byte_that_is_changed_makes_it_raise_anything_else(libraries, tmp_path):
    old, _ = libraries
    data = old.read_bytes()
    broken = tmp_path / "broken.so"
    for position in range(0, min(len(data), 4096), 17):
        broken.write_bytes(data[:position] + b"\xff" + data[position + 1 :])
        try:
            read_versions(broken)
        except ElfError:
            continue


@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x02" + bytes(90)],
)
def test_what_is_no_64_bit_little_endian_elf_is_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ElfError):
        read_versions(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_versions(tmp_path / "none.so")


def test_the_old_libstdcxx_that_the_loader_would_take_is_found_on_this_machine(
    libraries, monkeypatch, r1, tmp_path
):
    """The child that asks the dynamic loader gets the library that LD_LIBRARY_PATH puts first,
    and one that needs more than it has is named with it."""
    from ktops_doctor import LiveHost, run_checks

    old, _ = libraries
    package = tmp_path / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    new = tmp_path / "new"
    new.mkdir()
    (new / "versions.map").write_text("GLIBCXX_3.4.32 { global: newer; };")
    newer = compile_library(
        new,
        "libstdc++.so.6",
        "int newer(void){return 1;}",
        f"-Wl,--version-script={new}/versions.map",
        "-Wl,-soname,libstdc++.so.6",
    )
    source = "int newer(void); int use(void){return newer();}"
    compile_library(package / "lib", "libtorch_python.so", source, str(newer))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(old.parent))
    (result,) = run_checks(["lib.glibcxx"], LiveHost(), r1)
    assert result.status == "fail"
    assert result.value == (
        f"torch needs GLIBCXX_3.4.32; this Python loads {old}, which ends at 3.4.29"
    )
    assert result.detail == "libtorch_python.so does not load"
