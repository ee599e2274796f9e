"""Speeds that outlive an engine: what they belong to, and files that were damaged."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from planned_models import GIB, config, described, machine
from tiny_gguf import V3, write_tiny_gguf

from ktops_engine import LLM, EngineConfig, SamplingParams, measured_speeds
from ktops_engine.gguf import open_gguf
from ktops_engine.gpus import engine_machine
from ktops_engine.measured_speeds import (
    MAX_ENTRIES,
    SpeedKeeper,
    keep_speeds,
    recalled_speeds,
    speed_key,
)
from ktops_engine.model_config import resolve_model_config
from ktops_engine.native.cache import BuildInfo
from ktops_engine.plan import describe_q4_k_m, facts_of_files, place
from ktops_engine.speed_meter import Figure, Speeds

R1 = described()
HOST = machine(vram=(80 * GIB,))
PLACED = place(config(), R1, HOST)
FAST = Figure(57.4, 480, 260)
PROMPT = Figure(1020.0, 5120, 512)


@pytest.fixture
def kept(native_build: BuildInfo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file, which is not there yet."""
    monkeypatch.setattr(measured_speeds, "find_current", lambda: native_build)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ktops" / measured_speeds.FILE


def key(native_build: BuildInfo, placed=PLACED, facts=R1, host=HOST, *, is_random=False) -> str:
    return speed_key(placed, facts, host, native_build.sources_hash, is_random=is_random)


def test_what_was_measured_is_there_at_the_next_start_with_its_date(kept, native_build):
    assert recalled_speeds(PLACED, R1, HOST) is None
    keep_speeds(key(native_build), Speeds(FAST, {512: PROMPT}), now=1.7e9)
    found = recalled_speeds(PLACED, R1, HOST)
    assert (found.decode.figure, found.decode.at) == (FAST, 1.7e9)
    assert found.prompts[512].figure == PROMPT
    assert not found.is_random


def test_what_was_not_measured_this_time_stays(kept, native_build):
    keep_speeds(key(native_build), Speeds(FAST, {512: PROMPT}), now=1.7e9)
    long = Figure(4700.0, 8192, 4096)
    keep_speeds(key(native_build), Speeds(None, {4096: long}), now=1.8e9)
    found = recalled_speeds(PLACED, R1, HOST)
    assert (found.decode.at, found.prompts[512].at, found.prompts[4096].at) == (1.7e9, 1.7e9, 1.8e9)
    keep_speeds(key(native_build), Speeds(replace(FAST, tokens_per_s=60.0)), now=1.9e9)
    assert recalled_speeds(PLACED, R1, HOST).decode.figure.tokens_per_s == 60.0


def test_random_weights_are_told_and_never_shown_in_place_of_a_models(kept, native_build):
    keep_speeds(key(native_build, is_random=True), Speeds(PROMPT), now=1.8e9)
    assert recalled_speeds(PLACED, R1, HOST).is_random
    keep_speeds(key(native_build), Speeds(FAST), now=1.7e9)
    found = recalled_speeds(PLACED, R1, HOST)
    assert (found.is_random, found.decode.figure) == (False, FAST)


def test_a_figure_is_of_one_placement_model_machine_and_library(kept, native_build):
    keep_speeds(key(native_build), Speeds(FAST), now=1.7e9)
    eleven = describe_q4_k_m(replace(R1.config, num_hidden_layers=11))
    for asked in (config(gpu_experts=256), config(cpu_infer=8), config(gpu_memory_bytes=40 * GIB)):
        assert recalled_speeds(place(asked, R1, HOST), R1, HOST) is None
    assert recalled_speeds(place(config(), eleven, HOST), eleven, HOST) is None
    others = (
        replace(HOST, name="another"),
        replace(HOST, isa="scalar"),
        replace(HOST, gpus=(replace(HOST.gpus[0], name="another"),)),
        replace(HOST, total_ram_bytes=HOST.total_ram_bytes + 1),
    )
    for host in others:
        assert recalled_speeds(PLACED, R1, host) is None
    assert key(native_build) != speed_key(PLACED, R1, HOST, "other sources", is_random=False)
    less_free = replace(HOST, available_ram_bytes=900 * GIB)
    assert recalled_speeds(place(config(), R1, less_free), R1, less_free) is not None
    assert recalled_speeds(place(config(ctx_size=4096), R1, HOST), R1, HOST) is not None


def test_without_a_library_nothing_is_known(kept, native_build, monkeypatch):
    keep_speeds(key(native_build), Speeds(FAST), now=1.7e9)
    monkeypatch.setattr(measured_speeds, "find_current", lambda: None)
    assert recalled_speeds(PLACED, R1, HOST) is None


GOOD = {"tokens_per_s": 1.0, "num_tokens": 1, "length": 1, "at": 1.0}


@pytest.mark.parametrize(
    "damage",
    [
        None, 3, "x", [], {}, {"prompts": 3}, {"prompts": {"a": GOOD}}, {"prompts": {"512": 7}},
        {"decode": 7, "prompts": {}}, {"decode": {**GOOD, "tokens_per_s": 0}, "prompts": {}},
        {"decode": {**GOOD, "tokens_per_s": float("nan")}, "prompts": {}},
        {"decode": {"tokens_per_s": 1}, "prompts": {}},
    ],
)  # fmt: skip
def test_a_damaged_entry_is_as_none_and_is_replaced(kept, native_build, damage):
    keep_speeds("another", Speeds(FAST), now=1.7e9)
    entries = json.loads(kept.read_text())
    kept.write_text(json.dumps({**entries, key(native_build): damage}))
    assert recalled_speeds(PLACED, R1, HOST) is None
    keep_speeds(key(native_build), Speeds(FAST), now=1.8e9)
    assert recalled_speeds(PLACED, R1, HOST).decode.figure == FAST
    assert set(json.loads(kept.read_text())) == {"another", key(native_build)}


@pytest.mark.parametrize("words", ["", "{", "[1]", "\x00\xff"])
def test_a_damaged_file_is_as_none_and_is_replaced(kept, native_build, words):
    kept.parent.mkdir(parents=True)
    kept.write_text(words)
    assert recalled_speeds(PLACED, R1, HOST) is None
    keep_speeds(key(native_build), Speeds(FAST), now=1.8e9)
    assert recalled_speeds(PLACED, R1, HOST).decode.figure == FAST


def test_a_file_that_is_no_text_and_a_folder_that_is_none_cost_the_figures(kept, native_build):
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"\xff\xfe\x00")
    assert recalled_speeds(PLACED, R1, HOST) is None
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    keep_speeds(key(native_build), Speeds(FAST), now=1.8e9)
    assert recalled_speeds(PLACED, R1, HOST) is None


def test_the_oldest_are_forgotten(kept):
    for number in range(MAX_ENTRIES + 3):
        keep_speeds(f"model {number}", Speeds(FAST), now=1e9 + number)
    entries = json.loads(kept.read_text())
    assert len(entries) == MAX_ENTRIES
    assert "model 2" not in entries
    assert f"model {MAX_ENTRIES + 2}" in entries


class Told:
    """Stands for an engine: `speeds` is what it measured so far, `asked` is set when it tells."""

    def __init__(self) -> None:
        self.speeds, self.asked = Speeds(), threading.Event()

    def __call__(self) -> Speeds:
        self.asked.set()
        return self.speeds


def test_speeds_are_kept_at_the_end_and_nothing_where_nothing_was_measured(kept, native_build):
    engine = Told()
    SpeedKeeper(key(native_build), engine).close()
    assert not kept.exists()
    keeper = SpeedKeeper(key(native_build), engine)
    engine.speeds = Speeds(FAST)
    keeper.close()
    keeper.close()
    assert recalled_speeds(PLACED, R1, HOST).decode.figure == FAST


def test_speeds_are_kept_from_time_to_time_once_a_change(kept, native_build):
    engine = Told()
    engine.speeds = Speeds(FAST)
    keeper = SpeedKeeper(key(native_build), engine, every_s=0.001)
    for _ in range(3):
        engine.asked.clear()
        assert engine.asked.wait(10)
    at = recalled_speeds(PLACED, R1, HOST).decode.at
    keeper.close()
    assert recalled_speeds(PLACED, R1, HOST).decode.at == at


def test_an_engine_keeps_what_it_measured_and_a_plan_finds_it(kept, tmp_path, native_build):
    tiny = write_tiny_gguf(tmp_path, V3)
    wish = EngineConfig(tiny.path, tiny.config_folder, ctx_size=2048)
    llm = LLM.load(wish)
    try:
        for prompt in (600, 600):
            params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
            list(llm.generate([5] * prompt, params))
    finally:
        llm.shutdown()
    gguf = open_gguf(tiny.path)
    facts = facts_of_files(gguf, resolve_model_config(gguf, tiny.config_folder)[0])
    host = engine_machine()
    found = recalled_speeds(place(wish, facts, host), facts, host)
    assert found.decode.figure.tokens_per_s > 0
    assert found.prompts[512].figure.length == 600
    assert not found.is_random
