"""What an engine measured before, beside what `ktops plan` and `ktops serve` predict."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import jsonschema
import pytest
import schemas
from planned_models import GIB

import ktops.planning.machines.live as live
from ktops.launch.plan_line import Expectation, show_plan
from ktops.output import Mode, Output
from ktops.planning.model_plan import plan_model
from ktops.settings import Settings
from ktops_engine import measured_speeds
from ktops_engine.machine import MachineFacts
from ktops_engine.measured_speeds import Measured, MeasuredSpeeds, keep_speeds, speed_key
from ktops_engine.native.cache import BuildInfo
from ktops_engine.speed_meter import Figure, Speeds
from ktops_engine.text import text

HOST = MachineFacts(
    tuple(range(2)), 24 * GIB, 22 * GIB, read_bandwidth=26e9, bandwidth_is_measured=True,
    isa="avx512vnni", name="Test CPU",
)  # fmt: skip
AT = datetime(2026, 11, 22, 12).timestamp()
DECODE = Figure(9.714, 480, 300)
PROMPTS = {512: Figure(54.6, 1400, 700), 16384: Figure(12.3, 20000, 20000)}


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch, native_build: BuildInfo, tmp_path: Path) -> None:
    monkeypatch.setattr(live, "this_machine", lambda: HOST)
    monkeypatch.setattr(measured_speeds, "find_current", lambda: native_build)


@pytest.fixture
def keep(native_build: BuildInfo, tmp_path: Path):
    """`keep(speeds)`: an engine measured them with the plan for V2-Lite on this machine."""

    def call(speeds: Speeds, host: MachineFacts = HOST, *, is_random: bool = False) -> None:
        plan = plan_model("v2-lite-q4km", Settings(models_dir=tmp_path / "models"), host)
        placed = plan.served.placement
        key = speed_key(placed, plan.facts, host, native_build.sources_hash, is_random=is_random)
        keep_speeds(key, speeds, AT)

    return call


def table(ran) -> list[list[str]]:
    """The lines of speeds, by cell."""
    lines = ran.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("tok/s"))
    rows = lines[start : lines.index("", start)]
    cells = ([cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows)
    return [row for row in cells if len(row) > 1]


def test_a_measured_figure_stands_beside_the_predicted_one_with_its_date_and_tokens(ktops, keep):
    keep(Speeds(DECODE, PROMPTS))
    rows = table(ktops("plan", "v2-lite-q4km"))
    assert rows[0] == ["tok/s", "predicted", "measured", "limited by"]
    assert rows[1][0] == "decode"
    assert rows[1][2] == "9.71 (480 tokens, 2026-11-22)"
    named = {row[0]: row[2] for row in rows[2:]}
    assert named == {
        "prompt of 700": "54.6 (1400 tokens, 2026-11-22)",
        "prompt of 4096": "-",
        "prompt of 20000": "12.3 (20000 tokens, 2026-11-22)",
    }


def test_a_figure_below_the_range_is_remarked_on_and_one_inside_is_not(ktops, keep):
    hint = "measured below what this machine should give: ktops doctor --deep"
    keep(Speeds(DECODE))
    assert hint not in ktops("plan", "v2-lite-q4km").stdout
    keep(Speeds(replace(DECODE, tokens_per_s=2.0)))
    assert hint in ktops("plan", "v2-lite-q4km").stdout
    assert "实测低于" in ktops("plan", "v2-lite-q4km", "--lang", "zh").stdout


def test_random_weights_are_told(ktops, keep):
    keep(Speeds(DECODE), is_random=True)
    assert "9.71 (480 tokens, 2026-11-22, random weights)" in ktops("plan", "v2-lite-q4km").stdout


def test_a_figure_without_a_prediction_is_shown_all_the_same(ktops, keep, monkeypatch):
    unknown = replace(HOST, read_bandwidth=None, bandwidth_is_measured=False)
    monkeypatch.setattr(live, "this_machine", lambda: unknown)
    keep(Speeds(DECODE, {512: PROMPTS[512]}), unknown)
    ran = ktops("plan", "v2-lite-q4km")
    assert [row[:2] for row in table(ran)[1:]] == [["decode", "-"], ["prompt of 700", "-"]]
    assert "nothing tells this machine's RAM bandwidth" in ran.stdout


def test_a_figure_is_of_this_machine_and_of_the_placement_that_is_shown(ktops, keep):
    keep(Speeds(DECODE))
    described = "cores=2,isa=avx512vnni,ram=24GiB,bandwidth=26GB/s,measured"
    assert "2026-11-22" not in ktops("plan", "v2-lite-q4km", "--machine", described).stdout
    assert "2026-11-22" not in ktops("plan", "v2-lite-q4km", "--cpu-infer", "1").stdout


def test_what_was_measured_is_a_document_too(ktops, keep):
    keep(Speeds(replace(DECODE, tokens_per_s=2.0), PROMPTS))
    ran = ktops("plan", "v2-lite-q4km", "--json")
    jsonschema.validate(ran.document, schemas.schema("plan"))
    plan = ran.document["plans"][0]
    assert [prompt["num_tokens"] for prompt in plan["prediction"]["prompts"]] == [512, 4096]
    assert plan["measured"]["is_random"] is False
    decode, short, long = plan["measured"]["speeds"]
    assert (decode["prompt_tokens"], decode["tokens_per_s"], decode["falls_short"]) == (0, 2, True)
    assert decode["num_tokens"] == 480
    assert datetime.fromisoformat(decode["measured_at"]).timestamp() == AT
    assert decode["predicted_tokens_per_s"] == plan["prediction"]["decode_tokens_per_s"]
    assert (short["prompt_tokens"], long["prompt_tokens"]) == (700, 20000)
    assert short["predicted_tokens_per_s"][0] < 54.6 < short["predicted_tokens_per_s"][1]
    plan = ktops("plan", "r1-q4km", "--json").document["plans"][0]
    assert plan["measured"] is None


def test_where_the_server_does_less_its_own_figure_is_shown(ktops, keep, monkeypatch):
    from ktops.planning.machines.described import machine_named

    named = machine_named("9355,768GiB,5090")
    blocked = replace(named, gpu_obstacle=text("torch here was built without CUDA"))
    monkeypatch.setattr(live, "this_machine", lambda: blocked)
    keep(Speeds(DECODE), blocked)
    ran = ktops("plan", "v2-lite-q4km")
    today = ran.stdout[ran.stdout.index("Today") :].splitlines()
    assert today[1] == "         measured: 9.71 (480 tokens, 2026-11-22) tok/s"


def said(capsys, expected: Expectation) -> str:
    """The line of the plan that `ktops serve` shows; its event is held against the schema."""
    plan = plan_model("v2-lite-q4km", Settings(models_dir=Path("none")), HOST)
    show_plan(Output(Mode.JSON), plan.served.placement, expected)
    for event in schemas.documents(capsys.readouterr().out):
        schemas.check("serve", event)
        assert event["measured_tokens_per_s"] == expected.measured
    show_plan(Output(), plan.served.placement, expected)
    return " ".join(capsys.readouterr().err.split())


def test_serve_tells_what_was_measured_before(capsys):
    measured = MeasuredSpeeds(Measured(Figure(57.38, 480, 300), AT))
    both = said(capsys, Expectation.of((56.0, 64.2), measured))
    assert both.endswith("2 threads, expect 56 to 64 tok/s, measured 57.4 before")
    alone = said(capsys, Expectation.of(None, measured))
    assert alone.endswith("2 threads, measured 57.4 tok/s before")
    assert said(capsys, Expectation.of((56.0, 64.2), None)).endswith("expect 56 to 64 tok/s")
    assert said(capsys, Expectation.of(None, MeasuredSpeeds())).endswith("2 threads")
