"""A conda-like environment, for real: its loader takes an old libstdc++ before the system's.

The old library is built here: its version definitions end at GLIBCXX_3.4.28. The native library is
the real one behind a thin one that wants GLIBCXX_3.4.29, as if it had been linked dynamically.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

OLD_END = 28
SHIM = """
namespace std { [[noreturn]] void __throw_bad_array_new_length(); }
extern "C" int ktops_shim(int n) { if (n < 0) std::__throw_bad_array_new_length(); return n; }
"""


@dataclass(frozen=True)
class Environment:
    prefix: Path
    variables: dict[str, str]

    @property
    def library(self) -> Path:
        return self.prefix / "lib" / "libstdc++.so.6"

    def python(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.prefix / "bin" / "python"), *args]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.variables, cwd=self.prefix
        )

    def doctor(self, *args: str) -> tuple[int, dict[str, object]]:
        done = self.python("-m", "ktops", "doctor", "--json", *args)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)


def old_libstdcxx(folder: Path) -> None:
    """A shared library with the name and the version definitions of GCC 10's libstdc++."""
    names = ["GLIBCXX_3.4", *(f"GLIBCXX_3.4.{minor}" for minor in range(1, OLD_END + 1))]
    names += ["CXXABI_1.3", *(f"CXXABI_1.3.{minor}" for minor in range(1, 13))]
    script = "".join(
        f"{name} {{ global: old_{index}; local: *; }};\n" for index, name in enumerate(names)
    )
    source = "".join(f"int old_{index};\n" for index in range(len(names)))
    (folder / "old.c").write_text(source)
    (folder / "old.map").write_text(script)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libstdc++.so.6", "-Wl,--version-script=old.map",
         "-o", "libstdc++.so.6", "old.c"],
        cwd=folder,
        check=True,
    )  # fmt: skip


def dynamically_linked(built: Path, cache: Path) -> None:
    """The build in `built`, its library behind one that wants a new libstdc++."""
    folder = cache / "native" / built.name
    shutil.copytree(built, folder)
    (folder / "real").mkdir()
    real = (folder / "libktops.so").rename(folder / "real" / "libktops.so")
    (folder / "shim.cpp").write_text(SHIM)
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-o", "libktops.so", "shim.cpp",
         "-Wl,--no-as-needed", str(real), "-Wl,-rpath,$ORIGIN/real"],
        cwd=folder,
        check=True,
    )  # fmt: skip
    record = json.loads((folder / "build.json").read_text())
    record["library_bytes"] = (folder / "libktops.so").stat().st_size
    (folder / "build.json").write_text(json.dumps(record))


@pytest.fixture
def environment(tmp_path, native_build) -> Environment:
    prefix = tmp_path / "conda" / "envs" / "x"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(prefix)], check=True
    )
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "history").touch()
    old_libstdcxx(prefix / "lib")
    dynamically_linked(native_build.path.parent, tmp_path / "cache")
    variables = {
        **os.environ,
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
        "KTOPS_CACHE": str(tmp_path / "cache"),
    }
    return Environment(prefix, variables)


def by_id(document: dict[str, object]) -> dict[str, dict[str, str]]:
    return {check["id"]: check for check in document["checks"]}


def test_an_old_libstdcxx_in_front_is_found_shown_repaired_and_can_be_put_back(environment):
    status, document = environment.doctor("--only", "lib", "--fix", "--dry-run")
    checks = by_id(document)
    assert status == 1
    assert checks["lib.native"]["status"] == "fail"
    assert "GLIBCXX_3.4.29" in checks["lib.native"]["detail"]
    assert checks["lib.glibcxx"]["value"] == (
        f"libktops needs GLIBCXX_3.4.29; this Python loads {environment.library}, "
        f"which ends at 3.4.{OLD_END}"
    )
    (repair,) = document["repairs"]
    assert (repair["checks"], repair["state"]) == (["lib.glibcxx"], "planned")
    assert not environment.library.is_symlink()

    status, document = environment.doctor("--only", "lib", "--fix", "--yes")
    checks = by_id(document)
    assert status == 0, checks["lib.native"]["detail"]
    assert document["repairs"][0]["state"] == "done"
    assert checks["lib.native"]["status"] == checks["lib.glibcxx"]["status"] == "ok"
    assert environment.library.is_symlink()

    subprocess.run(repair["undo"], shell=True, check=True)
    assert not environment.library.is_symlink()
    assert by_id(environment.doctor("--only", "lib")[1])["lib.glibcxx"]["status"] == "fail"


def test_a_repair_that_fails_is_told_with_its_reason_and_exits_with_1(environment):
    environment.library.chmod(0o755)
    kept = environment.library.with_name("libstdc++.so.6.before-ktops")
    kept.mkdir()
    (kept / "in the way").touch()
    status, document = environment.doctor("--only", "lib.glibcxx", "--fix", "--yes")
    (repair,) = document["repairs"]
    assert status == 1
    assert repair["state"] == "failed"
    assert "cp ended with status 1: " in repair["reason"]
    assert not environment.library.is_symlink()


def test_the_real_native_library_works_without_any_repair(environment, native_build):
    code = (
        "import ctypes\n"
        "from ktops_engine.native.build import find_current\n"
        "from ktops_engine.native.load import load_native\n"
        "info = find_current()\n"
        "native = load_native(info)\n"
        "blocks, floats = (ctypes.c_ubyte * 34)(0, 60, 1), (ctypes.c_float * 32)()\n"
        "native.dequantize(8, ctypes.addressof(blocks), ctypes.addressof(floats), 32)\n"
        "print(info.path, floats[0])\n"
    )
    environment.variables["KTOPS_CACHE"] = str(native_build.path.parents[2])
    done = environment.python("-c", code)
    assert done.stdout == f"{native_build.path} 1.0\n", done.stderr
    status, document = environment.doctor("--only", "lib.native,lib.glibcxx")
    checks = by_id(document)
    assert checks["lib.native"]["status"] == "ok"
    assert checks["lib.glibcxx"]["value"].startswith("libktops has its own (static)")
    assert status == 0
