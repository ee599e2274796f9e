"""How checks are run: side by side, each on its own, none able to stop the others."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from ktops_doctor import (
    BUILD_CHECKS,
    SERVE_CHECKS,
    Check,
    Section,
    UnknownCheckError,
    all_checks,
    run_checks,
)
from ktops_doctor.check import fail, ok, skip
from ktops_doctor.recorded_host import RecordedHost

HOST = RecordedHost({})


def check(check_id, run, *, needs=(), time_limit=5.0, deep=False):
    return Check(
        id=check_id,
        title=check_id,
        section=Section.SYSTEM,
        run=run,
        why="",
        needs=needs,
        time_limit=time_limit,
        deep=deep,
    )


def run(checks, target, ids=None):
    return {r.id: r for r in run_checks(ids, HOST, target, checks=checks)}


def raises(host, target):
    raise KeyError("surprise")


def test_a_check_that_raises_becomes_a_crash_and_the_others_go_on(r1):
    results = run([check("a", raises), check("b", lambda h, t: ok("fine"))], r1)
    assert results["a"].status == "crash"
    assert results["a"].detail.startswith("KeyError: 'surprise' (test_running.py, line ")
    assert results["b"].status == "ok"


def test_a_check_that_never_ends_is_given_up_and_the_others_are_reported(r1):
    never = threading.Event()
    results = run(
        [
            check("slow", lambda h, t: ok(str(never.wait(30))), time_limit=0.1),
            check("after", lambda h, t: ok("x"), needs=("slow",)),
            check("fast", lambda h, t: ok("fine")),
        ],
        r1,
    )
    never.set()
    assert (results["slow"].status, results["slow"].value) == (
        "crash",
        "the check did not finish",
    )
    assert (results["after"].status, results["after"].value) == ("skip", "waits for slow")
    assert results["fast"].status == "ok"


def test_what_waits_for_a_failure_is_skipped_and_never_run(r1):
    results = run(
        [
            check("c", raises, needs=("b",)),
            check("b", raises, needs=("a",)),
            check("a", lambda h, t: fail("no", detail="d", fix="f")),
        ],
        r1,
    )
    assert [(r.id, r.status, r.value) for r in results.values()] == [
        ("c", "skip", "waits for a"),
        ("b", "skip", "waits for a"),
        ("a", "fail", "no"),
    ]


def test_a_skipped_need_hands_its_reason_on(r1):
    results = run([check("a", lambda h, t: skip("no GPU")), check("b", raises, needs=("a",))], r1)
    assert results["b"].value == "no GPU"


def test_a_subset_runs_what_it_needs_and_reports_only_what_was_asked_for(r1):
    asked = []

    def note(name, finding):
        return lambda h, t: asked.append(name) or finding

    checks = [
        check("a", note("a", ok("1"))),
        check("b", note("b", ok("2")), needs=("a",)),
        check("c", note("c", ok("3"))),
    ]
    assert list(run(checks, r1, ["b"])) == ["b"]
    assert asked == ["a", "b"]


def test_what_takes_long_runs_last_and_alone(r1):
    running, seen = set(), []

    def busy(name):
        def look(host, target):
            running.add(name)
            seen.append(frozenset(running))
            time.sleep(0.02)
            running.remove(name)
            return ok(name)

        return look

    checks = [
        check("slow.a", busy("slow.a"), deep=True),
        check("quick.a", busy("quick.a")),
        check("slow.b", busy("slow.b"), deep=True, needs=("quick.a",)),
        check("quick.b", busy("quick.b"), needs=("quick.a",)),
    ]
    results = run(checks, r1, [c.id for c in checks])
    assert [result.status for result in results.values()] == ["ok"] * 4
    assert seen[-2:] == [{"slow.a"}, {"slow.b"}]
    assert list(run(checks, r1)) == ["quick.a", "quick.b"]


def test_the_subsets_of_other_commands_are_checks_that_do_not_take_long():
    quick = {c.id for c in all_checks() if not c.deep}
    for subset in (SERVE_CHECKS, BUILD_CHECKS):
        assert set(subset) <= quick
        assert len(set(subset)) == len(subset)


def test_an_unknown_id_is_an_error_that_names_it(r1):
    with pytest.raises(UnknownCheckError, match=r"'gpu\.vrm'") as caught:
        run_checks(["gpu.vrm"], HOST, r1)
    assert caught.value.id == "gpu.vrm"


def test_nothing_asked_for_is_nothing_run(r1):
    assert run_checks([], HOST, r1) == []


def test_a_host_that_knows_nothing_crashes_some_checks_and_stops_none(r1):
    results = run_checks(None, HOST, r1)
    assert len(results) == sum(not check.deep for check in all_checks())
    crashed = {result.id for result in results if result.status == "crash"}
    assert "sys.os" in crashed
    assert "gpu.device" not in crashed


def test_ids_are_unique_well_formed_and_every_need_is_a_check():
    checks = all_checks()
    ids = [c.id for c in checks]
    assert len(ids) == len(set(ids))
    for c in checks:
        topic, dot, name = c.id.partition(".")
        assert topic.isalpha(), c.id
        assert dot, c.id
        assert name.replace("_", "").isalnum(), c.id
        assert set(c.needs) <= set(ids)
        assert c.why.endswith("."), c.id


def test_sections_are_contiguous_so_that_each_heading_appears_once():
    sections = [c.section for c in all_checks()]
    changes = [a for a, b in pairwise(sections) if a is not b]
    assert len(changes) + 1 == len(set(sections))


def test_every_finding_that_is_not_good_has_a_fix_and_says_what_follows(server, r1, demo):
    """Over a machine on which almost everything is wrong."""
    broken = {
        **server,
        "commands": {},
        "programs": {},
        "probes": {},
        "files": {},
        "disks": {},
        "limits": {"NOFILE": 64, "MEMLOCK": 0},
        "packages": {},
    }
    for target in (r1, demo):
        for result in run_checks(None, RecordedHost(broken), target):
            if result.status in ("warn", "fail"):
                assert result.detail, result
                assert result.fix, result
