"""`--source auto`: two hubs are asked, the faster one is taken, the other one goes on."""

from __future__ import annotations

import pytest

from ktops.hub import huggingface, measure, sources
from ktops.hub.modelscope import ModelScope

WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
FIRST = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00001-of-00009.gguf"
THIRD = FIRST.replace("00001", "00003")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Even these small files are worth a measurement."""
    monkeypatch.setattr(sources, "MEASURED_FROM_BYTES", 1)
    monkeypatch.setattr("ktops.hub.modelscope.RETRY_WAIT_S", 0.0)


@pytest.fixture
def auto(ktops):
    return lambda *args: ktops("download", "r1-q4km", "--json", *args)


@pytest.mark.parametrize(("slow", "taken"), [("hf", "ModelScope"), ("modelscope", "Hugging Face")])
def test_the_faster_hub_is_taken_and_both_rates_are_told(auto, ktops, hub, slow, taken):
    hub.slow.add(slow)
    hub.add_fault(THIRD, "status", 404, times=50)  # the rest is not needed here
    ran = ktops("download", "r1-q4km")
    assert f"/s: taking {taken}" in ran.stderr
    assert "Hugging Face sends " in ran.stderr
    assert "ModelScope sends " in ran.stderr


def test_a_measurement_reads_little_and_from_both(auto, hub, monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE_BYTES", 1000)
    assert auto().status == 0
    samples = [(data.hub, data.end) for data in hub.data if data.end is not None]
    assert sorted(samples) == [("hf", 1000), ("modelscope", 1000)]


def test_nothing_is_measured_when_nothing_is_to_be_fetched(auto, hub):
    assert auto().status == 0
    hub.data.clear()
    assert auto().status == 0
    assert hub.data == []


def test_nothing_is_measured_for_a_dry_run_or_a_hub_that_was_named(ktops, hub):
    assert ktops("download", "r1-q4km", "--dry-run").status == 0
    assert ktops("download", "r1-q4km", "--dry-run", "--source", "modelscope").status == 0
    assert hub.data == []


def test_a_hub_that_refuses_the_sample_is_the_slower_one(auto, hub):
    hub.add_fault(f"hf:{FIRST}", "status", 500)
    for path in hub.repos[WEIGHTS]:
        hub.add_fault(f"hf:{path}", "status", 500)
    ran = auto()
    assert ran.status == 0
    assert ran.events[0]["hub"] == "ModelScope"


def test_when_the_first_hub_fails_the_other_goes_on_and_fetches_nothing_twice(
    auto, hub, models_dir, shards
):
    hub.slow.add("modelscope")
    hub.add_fault(f"hf:{THIRD}", "status", 500, times=20)
    ran = auto("--workers", "1")
    assert ran.status == 0, ran.stdout
    plans = [event["hub"] for event in ran.events if event["event"] == "plan"]
    assert plans == ["Hugging Face", "ModelScope"]
    assert "going on with ModelScope" in ran.stderr
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == shards[THIRD]
    whole = [data for data in hub.data if data.end is None and data.status == 200]
    fetched = [data.path for data in whole if data.path.endswith(".gguf")]
    assert sorted(fetched) == sorted(shards)
    assert ran.events[-1]["fetched_bytes"] == ran.events[-1]["bytes"]


def test_what_the_first_hub_began_the_other_resumes(auto, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.slow.add("modelscope")
    hub.add_fault(f"hf:{THIRD}", "none")  # the sample
    hub.add_fault(f"hf:{THIRD}", "cut", 15_000_000)
    hub.add_fault(f"hf:{THIRD}", "status", 500)
    assert auto().status == 0
    resumed = [(data.hub, data.start) for data in hub.data if data.start and data.status == 206]
    assert resumed == [("modelscope", 10 << 20)]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard


def test_bytes_that_one_hub_spoils_twice_come_from_the_other(auto, hub, models_dir, shards):
    hub.slow.add("modelscope")
    hub.add_fault(f"hf:{THIRD}", "corrupt", 60_000, times=2)
    ran = auto()
    assert ran.status == 0, ran.stdout
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == shards[THIRD]


def test_when_the_second_hub_fails_too_its_error_ends_the_download(auto, hub):
    hub.add_fault(THIRD, "status", 500, times=50)
    ran = auto()
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == "hub-failed"


def test_a_full_disk_is_no_reason_to_try_another_hub(auto, hub, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ktops.hub.partial.PartialFile.write", full)
    ran = auto()
    assert ran.status == 4
    assert sum(event.get("event") == "plan" for event in ran.events) == 1


def test_a_hub_that_stays_silent_is_not_waited_for(auto, hub, monkeypatch):
    monkeypatch.setattr(sources, "GRACE_S", 0.2)
    monkeypatch.setattr(ModelScope, "list_files", lambda self, repo: hub.released.wait(30))
    ran = auto()
    assert ran.status == 0
    assert "ModelScope at" in ran.stderr
    assert "did not answer" in ran.stderr


def test_the_one_hub_that_has_the_model_is_taken(auto, hub, monkeypatch):
    monkeypatch.setattr(sources, "GRACE_S", 0.2)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", NOWHERE)
    ran = auto()
    assert ran.status == 0
    assert "taking Hugging Face" in ran.stderr
    assert huggingface.HuggingFace.name == ran.events[0]["hub"]


def test_who_forbids_one_hub_reaches_none(auto, hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert auto().events[-1]["error"]["code"] == "hub-offline"
    assert hub.data == []


def test_an_endpoint_without_a_scheme_is_taken_for_https(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hub.example/")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "hub.example/")
    assert huggingface.HuggingFace().endpoint == ModelScope().endpoint == "https://hub.example"
