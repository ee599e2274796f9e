"""Triton and what it calls: one fault at a time on the healthy server."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from ktops_doctor import LiveHost, run_checks

from .conftest import without_gpu

PIP = "/opt/ktops/bin/python -m pip install"


@pytest.fixture
def facts(server):
    """What the child that imports Triton said."""
    return server["probes"]["triton"]["facts"]


def test_a_triton_of_torch_s_own_version_is_good(ask, server, r1):
    result = ask(server, r1, "py.triton")
    assert (result.status, result.value) == ("ok", "3.5.1")


def test_a_triton_that_is_missing_is_named_with_the_version_that_torch_wants(
    ask, server, r1, demo, facts
):
    del facts["triton"]
    facts["triton_found"] = False
    result = ask(server, r1, "py.triton")
    assert (result.status, result.fix) == ("fail", f"{PIP} triton==3.5.1")
    assert ask(server, demo, "py.triton").status == "warn"
    assert ask(server, r1, "cc.triton").status == "skip"
    server["requirements"]["torch"] = ["triton-rocm==3.5.1", "numpy"]
    assert ask(server, r1, "py.triton").fix == f"{PIP} 'triton>=3.5'"


@pytest.mark.parametrize(
    ("said", "ended", "detail"),
    [
        ({"triton_error": "ImportError: libz.so.1"}, "", "ImportError: libz.so.1"),
        ({}, "ended by SIGSEGV", "ended by SIGSEGV"),
        ({}, "", "it said nothing"),
    ],
)
def test_a_triton_that_breaks_breaks_only_its_child(ask, server, r1, facts, said, ended, detail):
    del facts["triton"]
    facts |= said
    server["probes"]["triton"]["error"] = ended
    result = ask(server, r1, "py.triton")
    assert (result.status, result.detail) == ("fail", detail)
    assert result.fix == f"{PIP} --force-reinstall triton==3.5.1"


def test_a_triton_that_torch_is_not_made_for_is_a_warning_and_one_too_old_a_failure(
    ask, server, r1, facts
):
    facts["triton"] = "3.6.0"
    result = ask(server, r1, "py.triton")
    assert (result.status, result.expected) == ("warn", "should be 3.5.1")
    facts["triton"] = "3.4.0"
    result = ask(server, r1, "py.triton")
    assert (result.status, result.expected) == ("fail", "needs 3.5")


def test_without_a_gpu_or_with_a_cpu_build_of_torch_nobody_asks_for_triton(ask, server, r1, demo):
    server["probes"]["torch"]["facts"]["torch_cuda"] = None
    assert ask(server, demo, "py.triton").value == "torch is a CPU build"
    without_gpu(server)
    assert ask(server, demo, "py.triton").value == "no NVIDIA GPU that answers"
    assert ask(server, demo, "cc.triton").status == "skip"


def test_what_the_compiler_lacks_is_named_with_the_line_that_mends_it(ask, server, r1, facts):
    result = ask(server, r1, "cc.triton")
    assert (result.status, result.value) == (
        "ok",
        "/usr/bin/gcc, compiled kernels in ~/.triton/cache",
    )
    facts["compiler_error"] = "<stdin>:1:10: fatal error: Python.h: No such file or directory"
    result = ask(server, r1, "cc.triton")
    assert (result.status, result.fix) == ("warn", "sudo apt-get install -y python3.12-dev")
    facts["compiler_error"] = "/usr/bin/gcc: error while loading shared libraries: libz.so.1"
    assert ask(server, r1, "cc.triton").fix == "sudo apt-get install -y gcc"
    server["env"]["CC"] = "gcc-13"
    assert ask(server, r1, "cc.triton").fix == "unset CC"
    facts["compiler"] = ""
    result = ask(server, r1, "cc.triton")
    assert (result.value, result.fix) == (
        "neither gcc nor clang is installed",
        "sudo apt-get install -y gcc",
    )


def test_a_cache_that_may_not_be_written_is_found_before_the_first_kernel(ask, server, r1):
    server["disks"]["/home/u"] = {**server["disks"]["/"], "path": "/home/u", "writable": False}
    result = ask(server, r1, "cc.triton")
    assert (result.status, result.value) == ("warn", "/home/u may not be written")
    assert result.fix.startswith("export TRITON_CACHE_DIR=/path")
    server["env"]["TRITON_CACHE_DIR"] = "/data/triton"
    assert ask(server, r1, "cc.triton").value.endswith("in /data/triton")


@pytest.mark.parametrize(
    ("said", "status", "value"),
    [
        ({"seconds": 1.23, "relative_error": 0.0017}, "ok", "compiled and ran in 1.2 s"),
        (
            {"seconds": 1.2, "relative_error": 0.5},
            "fail",
            "a GPU kernel computes with an error of 5.0e-01",
        ),
        (
            {"seconds": 1.2, "relative_error": math.nan},
            "fail",
            "a GPU kernel computes with an error of nan",
        ),
        ({"error": "CompilationError: ptxas"}, "fail", "a GPU kernel does not compile or run"),
    ],
)
def test_a_kernel_is_compiled_run_and_judged(ask, server, r1, said, status, value):
    server["probes"]["gpu_kernel"] = {"facts": said}
    result = ask(server, r1, "gpu.kernel")
    assert (result.status, result.value) == (status, value)
    if "error" in said:
        assert result.detail == "CompilationError: ptxas"
        assert result.fix == "ktops doctor --only py.torch_cuda,py.triton,cc.triton"


def test_the_child_imports_triton_and_tries_the_compiler(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    said = LiveHost().probe("triton", time_limit=60).facts
    assert said["triton_found"] is True
    assert isinstance(said["triton"], str)
    assert Path(said["compiler"]).name in ("gcc", "clang")
    assert isinstance(said["compiler_error"], str)  # not every Python here has its headers


def test_a_compiler_that_does_not_start_or_finds_no_headers_is_told_by_the_child(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("CC", str(tmp_path / "gcc"))
    assert "No such file" in LiveHost().probe("triton", time_limit=60).facts["compiler_error"]
    program = tmp_path / "gcc"
    program.write_text("#!/bin/sh\necho 'stdin: fatal error: Python.h: not there' >&2\nexit 1\n")
    program.chmod(0o755)
    facts = LiveHost().probe("triton", time_limit=60).facts
    assert facts["compiler_error"] == "stdin: fatal error: Python.h: not there"
    assert "triton" in facts


def test_a_kernel_where_torch_finds_no_gpu_is_told_as_such():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert LiveHost().probe("gpu_kernel", time_limit=120).reason() == "torch finds no GPU"


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU")
def test_a_kernel_compiles_runs_and_is_right_on_this_gpu(r1):
    (result,) = run_checks(["gpu.kernel"], LiveHost(), r1)
    assert result.status == "ok", result
