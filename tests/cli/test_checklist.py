"""What the results of the doctor's subset mean for the command that ran it."""

from __future__ import annotations

import pytest

from ktops.launch.checklist import (
    RISKS,
    Checked,
    refuse_failures,
    refuse_risks,
    show_checks,
    start_subset,
)
from ktops.output import Output
from ktops_doctor import Result, Section, Status, UnknownCheckError, all_checks
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

REFUSAL = text("{model} cannot be served here:", model="r1")


def result(check_id: str, status: Status, fix: str = "") -> Result:
    return Result(check_id, "title", Section.SYSTEM, status, f"value of {check_id}", fix=fix)


def checked(*results: Result, seconds: float = 0.2) -> Checked:
    return Checked(results, seconds)


OK = result("sys.os", Status.OK)
WARN = result("py.triton", Status.WARN, "pip install triton")
CRASH = result("gpu.link", Status.CRASH)


@pytest.mark.parametrize(
    ("results", "line"),
    [
        ([OK, OK], "2 of 2 ok"),
        ([OK, result("x.y", Status.SKIP)], "1 of 1 ok"),
        ([OK, WARN], "2 of 2 ok, 1 warning (py.triton)"),
        ([WARN, WARN], "2 of 2 ok, 2 warnings (py.triton, py.triton)"),
        ([OK, result("mem.total", Status.FAIL)], "1 of 2 ok, 1 failure (mem.total)"),
        ([OK, CRASH], "1 of 2 ok, not answered: gpu.link"),
    ],
)
def test_one_line_counts_and_names(capsys, results, line):
    show_checks(Output(), checked(*results))
    assert capsys.readouterr().err == f"  check   {line}\n"


def test_what_takes_long_says_how_long(capsys):
    show_checks(Output(), checked(OK, seconds=2.34))
    assert capsys.readouterr().err == "  check   1 of 1 ok, 2.3 s\n"


def test_warnings_and_crashes_stop_nothing():
    refuse_failures(checked(OK, WARN, CRASH), REFUSAL)
    refuse_risks(checked(OK, WARN, CRASH), REFUSAL, "ktops serve --force")


@pytest.mark.parametrize(
    ("ids", "status"),
    [
        (["mem.total"], 4),
        (["mem.available", "disk.space"], 4),
        (["gpu.vram"], 4),
        (["lib.native"], 1),
        (["mem.total", "lib.native"], 1),
    ],
)
def test_a_failure_stops_with_every_figure_and_fix(ids, status):
    failed = [result(check_id, Status.FAIL, f"fix {check_id}") for check_id in ids]
    with pytest.raises(KtopsError) as caught:
        refuse_failures(checked(OK, *failed), REFUSAL, [text("a remark")])
    assert caught.value.code == "checks-failed"
    assert caught.value.exit_status == status
    for check_id in ids:
        assert f"\n  {check_id}  value of {check_id}" in caught.value.message
        assert f"fix {check_id}" in caught.value.hint
    assert caught.value.message.endswith("\n  a remark")


def test_a_risk_stops_and_names_the_command_that_goes_on():
    risky = result("disk.type", Status.WARN, "export KTOPS_MODELS=/disk")
    with pytest.raises(KtopsError) as caught:
        refuse_risks(checked(OK, WARN, risky), REFUSAL, "ktops serve r1 --force")
    assert caught.value.code == "checks-risky"
    assert "py.triton" not in caught.value.message
    assert caught.value.hint == (
        "export KTOPS_MODELS=/disk\nktops serve r1 --force   (goes on all the same)"
    )


def test_every_risk_is_a_check_of_the_doctor():
    assert set(RISKS) <= {check.id for check in all_checks()}


def test_what_the_background_raises_is_raised_where_it_is_waited_for():
    ending = start_subset(["no.such"], target=None)
    with pytest.raises(UnknownCheckError):
        ending()
