"""The last sentence: what this machine can do with the model, or why that is not known."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ktops.checkup.verdict import ask_plan
from ktops_doctor.recorded_host import RecordedHost

from .conftest import PLAN, planned

GIB = 1 << 30
MORE = "All that its GPUs have could make that 13-16; what keeps it from that: ktops plan r1-q4km"
TOO_SMALL = "This machine cannot serve r1-q4km: 64 GiB of the 357 GiB of RAM that it needs."


@pytest.mark.parametrize(
    ("answer", "sentence", "can_serve"),
    [
        (
            planned(tokens_per_s=[9.8, 12.4]),
            "This machine can serve r1-q4km at about 9.8-12 tok/s.",
            True,
        ),
        (
            planned(tokens_per_s=[3.04, 2.96]),
            "This machine can serve r1-q4km at about 3.0 tok/s.",
            True,
        ),
        (
            planned(tokens_per_s=[8.2, 11.0], with_all_gpus_tokens_per_s=[13.1, 16.4]),
            f"This machine can serve r1-q4km at about 8.2-11 tok/s. {MORE}",
            True,
        ),
        (
            planned(),
            "This machine can hold r1-q4km; how fast it is, nobody measured: ktops build",
            True,
        ),
        (
            planned(needed_bytes=357 * GIB, there_bytes=64 * GIB, instead="v2-lite-q4km"),
            f"{TOO_SMALL} It can serve v2-lite-q4km.",
            False,
        ),
        (
            {"status": 1, "stderr": "Traceback\nModuleNotFoundError: No module named 'psutil'\n"},
            "No plan for r1-q4km: ModuleNotFoundError: No module named 'psutil'",
            None,
        ),
        (
            {"status": -11},
            "No plan for r1-q4km: it said nothing",
            None,
        ),
        (
            {"status": None, "timed_out": True},
            "No plan for r1-q4km: it took too long; ktops plan waits for it",
            None,
        ),
        (
            {"status": 0, "stdout": "no json"},
            "No plan for r1-q4km: JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
            None,
        ),
    ],
)
def test_every_outcome_of_planning_is_one_sentence(server, r1, answer, sentence, can_serve):
    server["commands"][PLAN] = answer
    verdict = ask_plan(RecordedHost(server), r1, deep=False)()
    assert verdict.sentence == sentence
    assert verdict.document["can_serve"] is can_serve


def test_the_child_plans_for_this_machine(native_build):
    command = [sys.executable, "-P", "-m", "ktops.checkup.plan_child", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["needed_bytes"] is None
    assert facts["ram_bytes"] > 0
    assert facts["tokens_per_s"] is None or facts["tokens_per_s"][0] > 0
