"""Nine shards from a hub to an answer: killed twice, spoilt once, resumed, verified, served."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace

import pytest
from fake_hub import FakeHub
from stalled_download import stalled_download
from tiny_gguf import V3, write_tiny_gguf

from ktops.hub import download as downloading
from ktops.hub import planning

WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
CONFIG = "deepseek-ai/DeepSeek-R1"
NUM_SHARDS = 9
SHAPE = replace(  # its experts make a shard of 28 MB: more than what a client writes at once
    V3,
    hidden_size=512,
    moe_intermediate_size=1024,
    n_routed_experts=32,
    num_hidden_layers=2,
)
STALLS = (15_000_000, 12_000_000)  # bytes that come before the hub falls silent
ARRIVED = {"hf": (10 << 20, 20 << 20), "modelscope": (14 << 20, 25 << 20)}  # whole chunks of them


@pytest.fixture(scope="module")
def tiny_repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("tiny")
    model = write_tiny_gguf(folder, SHAPE, num_shards=NUM_SHARDS, name="DeepSeek-R1-Q4_K_M")
    assert len(model.paths) == NUM_SHARDS
    shards = {f"DeepSeek-R1-Q4_K_M/{path.name}": path.read_bytes() for path in model.paths}
    config = {path.name: path.read_bytes() for path in model.config_folder.iterdir()}
    return {WEIGHTS: shards, CONFIG: config}


@pytest.fixture
def tiny_hub(hub: FakeHub, tiny_repos: dict[str, dict[str, bytes]]) -> FakeHub:
    hub.repos.clear()
    hub.repos.update(tiny_repos)
    return hub


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_model_of_nine_shards_survives_the_way_from_a_hub_to_an_answer(
    ktops, tiny_hub, models_dir, source, monkeypatch, native_build
):
    folder = models_dir / "r1-q4km"
    flags = ("--source", source)
    shards = tiny_hub.repos[WEIGHTS]
    large = max(shards, key=lambda name: len(shards[name]))

    with monkeypatch.context() as patch:
        patch.setattr(planning, "_free_bytes", lambda place: 1000)
        assert ktops("download", "r1-q4km", *flags).status == 4
        assert tiny_hub.data == []

    for stall, arrived in zip(STALLS, ARRIVED[source], strict=True):
        tiny_hub.add_fault(large, "stall", stall)
        with stalled_download(folder, arrived, *flags) as process:
            process.kill()
            assert process.wait(30) == -signal.SIGKILL

    tiny_hub.add_fault(large, "corrupt", len(shards[large]) - 5)
    ran = ktops("download", "r1-q4km", *flags)
    assert ran.status == 0, ran.stderr
    assert "arrived spoilt" in ran.stderr
    assert [r.start for r in tiny_hub.data if r.path == large][-2:] == [ARRIVED[source][1], 0]
    assert ktops("models", "verify", "r1-q4km").status == 0

    tiny_hub.data.clear()
    with monkeypatch.context() as patch:
        patch.setattr(downloading, "digest_file", None)  # calling it would be an error
        end = ktops("download", "r1-q4km", "--json").events[-1]
    assert (end["fetched_bytes"], end["verified_bytes"], tiny_hub.data) == (0, 0, [])

    assert answer_of_served("r1-q4km")["usage"]["completion_tokens"] == 4


def test_a_folder_of_the_users_own_is_served_by_the_name_it_was_given(
    ktops, models_dir, tmp_path, native_build
):
    model = write_tiny_gguf(tmp_path / "somewhere", num_shards=2)
    args = ("models", "add", "mine", str(model.path), "--config", str(model.config_folder))
    assert ktops(*args).status == 0
    assert answer_of_served("mine")["model"] == "mine"


def answer_of_served(name: str) -> dict:
    """Serve `name` in a process of its own, ask it for four tokens, and stop it."""
    command = [sys.executable, "-m", "ktops", "serve", name, "--port", "0", "-q"]
    command += ["--cpu-infer", "1", "--ctx-size", "256", "--force"]  # fewer cores than R1 asks
    body = {"model": name, "prompt": "The quick", "max_tokens": 4, "ignore_eos": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            url = served.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            request = urllib.request.Request(
                f"{url}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
            served.send_signal(signal.SIGTERM)
            assert served.wait(60) == 128 + signal.SIGTERM
        finally:
            served.kill()
    return answer
