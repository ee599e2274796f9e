"""Interpreter and packages: one fault at a time on the healthy server."""

from __future__ import annotations

import pytest

PIP = "/opt/ktops/bin/python -m pip install"


@pytest.mark.parametrize(("version", "status"), [((3, 10, 4), "fail"), ((3, 14, 0), "fail")])
def test_a_python_without_wheels_is_a_failure(ask, server, r1, version, status):
    server["python"]["version"] = list(version)
    assert ask(server, r1, "py.version").status == status


def test_torch_for_the_cpu_and_torch_for_a_later_cuda_leave_the_gpu_idle(ask, server, r1, demo):
    facts = server["probes"]["torch"]["facts"]
    facts["torch_cuda"] = None
    assert ask(server, r1, "py.torch_cuda").value == "torch is a CPU build"
    facts["torch_cuda"] = "13.0"
    result = ask(server, r1, "py.torch_cuda")
    assert (result.status, result.fix.rpartition("/")[2]) == ("fail", "cu126")
    assert ask(server, demo, "py.torch_cuda").status == "warn"
    facts["torch_cuda"] = "12.8"
    assert ask(server, r1, "py.torch_cuda").status == "ok"


def test_a_torch_whose_import_was_not_waited_for_is_judged_by_its_libraries(ask, server, r1):
    partly = {"torch_found": True, "torch_version": "2.9.1+cu126", "torch_cuda": "12.6"}
    server["probes"]["torch"]["facts"] = {**partly, "torch_libraries": True}
    result = ask(server, r1, "py.torch")
    assert result.status == "ok"
    assert result.value == "2.9.1+cu126, built for CUDA 12.6, its libraries load"
    assert ask(server, r1, "py.torch_cuda").status == "ok"
    server["probes"]["torch"] = {"facts": partly, "error": "no answer within 40 s"}
    result = ask(server, r1, "py.torch")
    assert (result.status, result.detail) == ("fail", "no answer within 40 s")


def test_a_gpu_hidden_from_torch_is_told_from_one_it_cannot_use(ask, server, r1):
    server["probes"]["torch"]["facts"]["cuda_available"] = False
    assert ask(server, r1, "py.torch_cuda").fix.startswith("ls -l /dev/nvidia*")
    for variable, value in (
        ("-1", "CUDA_VISIBLE_DEVICES=-1"),
        ("", "CUDA_VISIBLE_DEVICES is set and empty, which hides every GPU"),
    ):
        server["env"]["CUDA_VISIBLE_DEVICES"] = variable
        result = ask(server, r1, "py.torch_cuda")
        assert (result.value, result.fix) == (value, "unset CUDA_VISIBLE_DEVICES")


def test_packages_that_are_missing_or_old_are_listed_with_what_is_wanted(ask, server, r1):
    server["requirements"]["ktops"] += ["typer>=0.29", "pytest>=8; extra == 'dev'"]
    server["packages"]["numpy"] = "1.24.4"
    result = ask(server, r1, "py.packages")
    assert result.fix == f"{PIP} 'numpy>=1.26' 'typer>=0.29'"
    server["requirements"] = {}
    assert ask(server, r1, "py.packages").status == "skip"


def test_a_compiled_package_that_breaks_is_named_even_when_the_child_dies_of_it(ask, server, r1):
    server["probes"]["imports"]["facts"]["numpy"] = {"error": "ImportError: numpy.core"}
    assert ask(server, r1, "py.imports").fix == f"{PIP} --force-reinstall numpy"
    server["probes"]["imports"] = {
        "facts": {"numpy": {"version": "2.3.1"}},
        "error": "ended by SIGILL",
    }
    result = ask(server, r1, "py.imports")
    assert (result.value, result.detail) == ("tokenizers does not import", "ended by SIGILL")
