"""Opening a library: only the one that belongs to this code is accepted."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from ktops_engine.errors import KtopsError
from ktops_engine.native import load, structs
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.load import load_native
from ktops_engine.native.sources import find_sources


def library_of(source: str, folder: Path, like: BuildInfo) -> BuildInfo:
    """A build whose library is compiled from one C++ source."""
    (folder / "foreign.cpp").write_text(source)
    path = folder / "libktops.so"
    command = ["g++", "-shared", "-fPIC", str(folder / "foreign.cpp"), "-o", str(path)]
    subprocess.run(command, check=True)
    return dataclasses.replace(like, path=path)


def error_of(info: BuildInfo) -> KtopsError:
    with pytest.raises(KtopsError) as caught:
        load_native(info)
    assert caught.value.hint == "ktops build --force"
    return caught.value


def test_a_truncated_library_is_refused(native_build: BuildInfo, tmp_path: Path) -> None:
    path = tmp_path / "libktops.so"
    path.write_bytes(native_build.path.read_bytes()[:2000])
    error = error_of(dataclasses.replace(native_build, path=path))
    assert error.code == "native-load-failed"
    assert str(path) in error.message


def test_a_missing_library_is_refused(native_build: BuildInfo, tmp_path: Path) -> None:
    error = error_of(dataclasses.replace(native_build, path=tmp_path / "gone.so"))
    assert error.code == "native-load-failed"


def test_another_library_is_refused(native_build: BuildInfo, tmp_path: Path) -> None:
    error = error_of(library_of("int other;", tmp_path, native_build))
    assert error.code == "native-load-failed"
    assert "ktops_abi_version" in error.message


def test_another_interface_version_is_refused(native_build: BuildInfo, tmp_path: Path) -> None:
    source = 'extern "C" unsigned ktops_abi_version() { return 999; }'
    error = error_of(library_of(source, tmp_path, native_build))
    assert error.code == "native-abi"
    assert "999" in error.message


def test_structs_of_other_sizes_are_refused(native_build: BuildInfo, monkeypatch) -> None:
    monkeypatch.setattr(load, "STRUCTS", (structs.MatrixStruct, *structs.STRUCTS[:-1]))
    assert error_of(native_build).code == "native-abi"


def test_numbers_shared_with_the_header_agree() -> None:
    header = (find_sources() / "include" / "ktops.h").read_text()
    version = re.search(r"#define KTOPS_ABI_VERSION (\d+)", header)
    assert version is not None
    assert int(version[1]) == structs.ABI_VERSION
    statuses = dict(
        re.findall(r"KTOPS_(?:ERROR_)?(\w+) = (\d+),", header.split("ktops_status;")[0])
    )
    assert {name: int(value) for name, value in statuses.items()} == {
        status.name: status.value for status in structs.Status
    }


def test_the_best_instruction_set_is_used_by_default(native_build: BuildInfo) -> None:
    native = load_native(native_build)
    assert native.isa_available[0] == "scalar"
    assert native.isa == native.isa_available[-1]
