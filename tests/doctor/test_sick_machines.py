"""The command itself, on installations that are broken in earnest: it finishes and names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOWHERE = dict.fromkeys(("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"), "http://127.0.0.1:9")


@pytest.fixture
def ktops(tmp_path):
    """`ktops(*args, broken=..., **variables)` runs `python -m ktops ARGS` with packages in front of
    the real ones that cannot be imported."""

    def run(*args: str, broken: tuple[str, ...] = (), **variables: str):
        front = tmp_path / "front"
        front.mkdir(exist_ok=True)
        for name in broken:
            (front / f"{name}.py").write_text(f"raise ImportError('{name} is broken')\n")
        path = os.pathsep.join([str(front), *filter(None, sys.path)])
        return subprocess.run(
            [sys.executable, "-m", "ktops", *args],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **NOWHERE, "PYTHONPATH": path, **variables},
        )

    return run


def checks_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    assert "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    assert document["summary"]["crash"] == 0
    return {check["id"]: check for check in document["checks"]}


def test_a_torch_that_cannot_be_imported_is_named_and_everything_else_is_told(ktops):
    done = ktops("doctor", "--model", "demo", "--json", broken=("torch",))
    checks = checks_of(done)
    assert done.returncode == 1
    assert checks["py.torch"]["status"] == "fail"
    assert checks["py.torch"]["detail"] == "ImportError: torch is broken"
    assert checks["lib.engine"]["status"] == "ok"


def cached_build(built: Path, cache: Path) -> Path:
    """A copy of a build in a cache of its own; the library."""
    shutil.copytree(built.parent, cache / "native" / built.parent.name)
    return cache / "native" / built.parent.name / built.name


def test_a_deleted_and_a_truncated_native_library_are_named_with_their_path(
    ktops, tmp_path, native_build
):
    library = cached_build(native_build.path, tmp_path / "cache")
    only = ("doctor", "--only", "lib.native", "--json")
    variables = {"KTOPS_CACHE": str(tmp_path / "cache")}
    assert checks_of(ktops(*only, **variables))["lib.native"]["status"] == "ok"
    size = library.stat().st_size
    library.write_bytes(library.read_bytes()[:5000])
    check = checks_of(ktops(*only, **variables))["lib.native"]
    assert (check["status"], check["fix"]) == ("warn", "ktops build")
    assert check["value"] == f"{library} is damaged: 5000 of {size} bytes"
    library.unlink()
    check = checks_of(ktops(*only, **variables))["lib.native"]
    assert check["value"] == f"{library} was deleted"


def test_a_library_of_the_right_size_whose_content_is_damaged_does_not_load(
    ktops, tmp_path, native_build
):
    library = cached_build(native_build.path, tmp_path / "cache")
    library.write_bytes(bytes(library.stat().st_size))
    done = ktops("doctor", "--only", "lib", "--json", KTOPS_CACHE=str(tmp_path / "cache"))
    check = checks_of(done)["lib.native"]
    assert (check["status"], check["fix"]) == ("fail", "ktops build --force")
    assert check["value"] == f"{library} does not load"


@pytest.mark.parametrize("broken", ["typer", "pydantic"])
def test_without_the_command_line_the_doctor_runs_and_says_so(ktops, broken):
    done = ktops("doctor", "--only", "sys,py.packages", "--strict", broken=(broken,))
    assert "  ok    sys.os " in done.stdout
    assert done.stderr == (
        "warning: only the doctor runs on this Python "
        f"(ImportError: {broken} is broken)\n"
    )  # fmt: skip


def test_without_the_command_line_other_commands_lead_to_the_doctor(ktops):
    done = ktops("serve", "demo", broken=("typer",))
    assert done.returncode == 1
    assert done.stderr == (
        "error: ktops does not start on this Python (ImportError: typer is broken)\n"
        "  Fix: ktops doctor\n"
    )


def test_the_plain_doctor_takes_the_same_options(ktops):
    def plain(*args: str) -> subprocess.CompletedProcess[str]:
        return ktops("doctor", *args, broken=("typer",))

    ids = plain("--list-checks", "-q", "--only", "sys", "--skip", "sys.glibc").stdout.split()
    assert ids == ["sys.os", "sys.kernel"]
    assert json.loads(plain("--only", "sys.os", "--json").stdout)["checks"][0]["id"] == "sys.os"
    assert plain("--only", "gpu.vrm").returncode == 2
    assert plain("--no-such-option").returncode == 2
    assert "  正常  sys.os" in plain("--only", "sys.os", "--lang", "zh").stdout


@pytest.mark.parametrize("broken", ["rich", "psutil", "numpy", "platformdirs", "gguf", "httpx"])
def test_no_other_package_keeps_the_doctor_from_finishing(ktops, broken):
    done = ktops("doctor", "--model", "demo", "--json", broken=(broken,))
    checks = checks_of(done)
    assert done.returncode in (0, 1)
    assert checks["sys.os"]["status"] == "ok"


def test_with_the_standard_library_alone_it_finishes(tmp_path):
    """-I -S: no package of anybody is in reach, only the three folders of the checkout."""
    root = Path(__file__).parents[2]
    code = (
        f"import sys; sys.path[:0] = {[str(root / name) for name in ('', 'engine', 'doctor')]!r};"
        "sys.argv = ['ktops', 'doctor', '--model', 'demo', '--json'];"
        "from ktops.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **NOWHERE},
    )
    assert "only the doctor runs on this Python (ModuleNotFoundError" in done.stderr
    assert done.returncode in (0, 1)
    document = json.loads(done.stdout)
    assert document["summary"]["crash"] == 0


def test_a_python_that_is_too_old_is_told_so_without_a_traceback():
    code = "import sys; sys.version_info = (3, 8, 18); from ktops.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: ktops needs Python 3.11 to 3.13, and {sys.executable} is 3.8.18\n"
        "  Fix: conda create -y -n ktops python=3.12\n"
    )
