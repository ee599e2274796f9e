"""What `ktops serve` uses to make a model whole: the plan first, then the files."""

from __future__ import annotations

import pytest

from ktops.fetching import fetch_model, plan_fetch
from ktops.hub.store import State, find_model
from ktops.output import Mode, Output
from ktops.settings import Settings
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError

REPO = "unsloth/DeepSeek-R1-GGUF"
FIRST = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00001-of-00009.gguf"
THIRD = FIRST.replace("00001", "00003")
QUIET = Output(mode=Mode.QUIET)


@pytest.fixture
def settings(models_dir):
    return Settings(models_dir)


def test_the_plan_counts_bytes_and_the_fetch_gives_a_model_to_serve(hub, settings, capsys):
    plan = plan_fetch(settings, "r1-q4km")
    assert plan.missing_bytes == plan.total_bytes > 9 * 60_000
    assert hub.data == []
    listings = len(hub.listings)
    choice = fetch_model(QUIET, settings, "r1-q4km", plan=plan)
    assert len(hub.listings) == listings  # nobody is asked twice
    assert (choice.name, choice.gguf_path) == ("r1-q4km", plan.root / FIRST)
    assert choice.model_path == plan.root / "config"
    assert plan_fetch(settings, "r1-q4km").is_done
    hub.data.clear()
    assert fetch_model(QUIET, settings, "r1-q4km", source="hf") == choice
    assert hub.data == []
    assert capsys.readouterr().out == ""


def test_a_repository_that_broke_off_is_completed_by_the_name_of_its_folder(hub, settings, ktops):
    hub.add_fault(THIRD, "status", 404, times=9)
    assert ktops("download", f"hf:{REPO}", "--include", "*R1-Q4*").status == 1
    hub.faults.clear()
    assert find_model("DeepSeek-R1-GGUF", settings.models_dir).state is State.INCOMPLETE
    choice = fetch_model(QUIET, settings, "DeepSeek-R1-GGUF")
    assert choice.gguf_path == settings.models_dir / "DeepSeek-R1-GGUF" / FIRST


def test_a_disk_that_is_too_small_stops_it_before_the_first_byte(hub, settings, monkeypatch):
    monkeypatch.setattr("ktops.hub.planning._free_bytes", lambda place: 1000)
    with pytest.raises(KtopsError) as caught:
        fetch_model(QUIET, settings, "r1-q4km")
    assert caught.value.code == "disk-too-small"
    assert hub.data == []


def test_files_of_the_users_own_are_never_written_to(hub, settings, ktops):
    assert ktops("models", "add", "r1-q4km", str(demo_path())).status == 0
    with pytest.raises(KtopsError) as caught:
        fetch_model(QUIET, settings, "r1-q4km")
    assert caught.value.code == "registered"
