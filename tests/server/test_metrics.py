"""GET /metrics through the real app: counts, times and what the engine says of itself."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ktops_engine import LLM, EngineConfig, metric_names
from ktops_engine.demo import demo_path
from ktops_engine.node_memory import MAX_SHARE, REFRESH_S, NodeMemory, parse_numa_maps
from ktops_engine.server import ModelHandle, ServerConfig
from ktops_engine.server.engine_metrics import vram_bytes
from ktops_engine.server.metrics import RATE_WINDOW_S, Metrics
from ktops_engine.types import FinishReason, StepOutput

KEY = "sesame"


class Page:
    """A scrape of /metrics, by sample name and labels (the model's name left out)."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple, float] = {}
        self.types: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
                self.samples[sample.name, *sorted(labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, *sorted(labels.items())]

    def finished(self) -> dict[str, float]:
        reasons = [reason.value for reason in FinishReason]
        name = f"{metric_names.REQUESTS_FINISHED}_total"
        return {reason: self.value(name, finished_reason=reason) for reason in reasons}

    def count(self, histogram: str) -> float:
        return self.value(f"{histogram}_count")


def scrape(live) -> Page:
    response = live.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return Page(response.text)


@pytest.fixture
def fresh(serve, new_engine):
    engine = new_engine()
    with serve(engine) as live:
        live.engine = engine
        yield live


def test_every_name_is_there_before_the_first_request(fresh):
    page = scrape(fresh)
    names = {value for name, value in vars(metric_names).items() if name.isupper()}
    missing = names - set(page.types)
    assert missing <= {metric_names.NODE_MEMORY}, missing
    assert page.value(metric_names.STATE, state="ready") == 1
    assert set(page.finished().values()) == {0}


def test_while_the_model_loads_the_page_answers_with_nothing_done(serve):
    with serve(None) as live:
        page = scrape(live)
    assert page.value(metric_names.STATE, state="loading") == 1
    assert page.value(metric_names.REQUESTS_RUNNING) == 0
    assert page.value(f"{metric_names.EXPERT_BYTES}_total") == 0


def test_a_dead_engine_is_seen(fresh):
    fresh.engine.dead_reason = "the kernel library failed"
    assert scrape(fresh).value(metric_names.STATE, state="dead") == 1


def test_each_answer_counts_once_by_the_reason_it_ended_for(fresh):
    fresh.engine.say("Yes.")
    fresh.chat()
    fresh.chat(max_tokens=2)
    fresh.engine.say("one STOP two three")
    fresh.complete(stop=["STOP"])
    fresh.engine.scripts = [["the model broke"]]
    assert fresh.chat().status_code == 500
    assert scrape(fresh).finished() == {"stop": 2, "length": 1, "abort": 0, "error": 1}


def test_times_are_those_of_tokens_and_requests(fresh):
    fresh.engine.say("four")
    fresh.complete(max_tokens=4)
    fresh.complete(max_tokens=1)
    page = scrape(fresh)
    assert page.count(metric_names.TIME_TO_FIRST_TOKEN) == 2
    assert page.count(metric_names.INTER_TOKEN_LATENCY) == 3
    assert page.count(metric_names.REQUEST_LATENCY) == 2
    assert page.count(metric_names.QUEUE_TIME) == 2
    assert page.value(f"{metric_names.PREFIX_CACHE_HITS}_total") == 6  # three each, it says
    assert page.value(metric_names.TOKENS_PER_SECOND) == pytest.approx(5 / RATE_WINDOW_S)


def test_a_client_that_leaves_counts_as_aborted(fresh, patience_s):
    gate = threading.Event()
    fresh.engine.say("a", gate, "b")
    with fresh.client.stream(
        "POST", "/v1/completions", json={"prompt": "hi", "stream": True}
    ) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + patience_s
    while scrape(fresh).finished()["abort"] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.set()
    assert scrape(fresh).finished() == {"stop": 0, "length": 0, "abort": 1, "error": 0}


def test_a_refused_request_is_not_counted(fresh):
    fresh.engine.max_waiting = 0
    assert fresh.chat().status_code == 503
    page = scrape(fresh)
    assert sum(page.finished().values()) == 0
    assert page.count(metric_names.TIME_TO_FIRST_TOKEN) == 0


def test_the_page_needs_the_key_and_shows_none(serve, new_engine):
    with serve(new_engine(), api_key=KEY) as live:
        assert live.client.get("/metrics").status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        response = live.client.get("/metrics", headers=headers)
    assert response.status_code == 200
    assert KEY not in response.text


def test_openmetrics_is_spoken_to_who_asks_for_it(fresh):
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = fresh.client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_a_model_name_with_quotes_is_escaped(serve, new_engine):
    with serve(new_engine(), model_id='a "b"\n\\c') as live:
        [family] = [
            family
            for family in text_string_to_metric_families(live.client.get("/metrics").text)
            if family.name == metric_names.REQUESTS_RUNNING
        ]
    assert family.samples[0].labels["model_name"] == 'a "b"\n\\c'


def test_the_real_engine_counts_tokens_experts_and_seconds(serve, native_build):
    path = demo_path()
    llm = LLM.load(EngineConfig(gguf_path=path, model_path=path, cpu_infer=1, ctx_size=512))
    try:
        with serve(llm, model_id="demo") as live:
            body = {"prompt": "Who are you?", "max_tokens": 6, "temperature": 0}
            usage = live.client.post("/v1/completions", json=body).json()["usage"]
            page = scrape(live)
    finally:
        llm.shutdown()
    assert page.value("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert page.value("vllm:generation_tokens_total") == usage["completion_tokens"]
    for phase in ("prefill", "decode"):
        assert page.value("ktops:step_seconds_total", phase=phase) > 0
    assert page.value("vllm:kv_cache_usage_perc") == 0  # all given back
    assert page.value("process_resident_memory_bytes") > 1 << 20
    assert page.value("ktops:vram_bytes") == 0
    steps = sum(page.value("ktops:step_seconds_total", phase=p) for p in ("prefill", "decode"))
    assert 0 < page.value("ktops:expert_seconds_total") <= steps
    low, high = expert_reads(llm, usage)
    assert low <= page.value("ktops:expert_bytes_read_total") <= high
    if Path("/proc/self/numa_maps").exists():
        assert page.value("ktops:memory_node_bytes", node="0") > 1 << 20


def expert_reads(llm: LLM, usage: dict) -> tuple[int, int]:
    """The fewest and most bytes of experts that one prompt, computed at once, and its answer read.

    Every layer reads the chosen experts once a step: exactly known for each single token, and for
    a prompt between those of one token and all there are.
    """
    one_of_each_layer = sum(
        tensor.nbytes // tensor.shape[0]
        for name, tensor in llm.gguf.tensors.items()
        if re.search(r"ffn_(gate|up|down)_exps", name)
    )
    config = llm.model_config
    decoded = (usage["completion_tokens"] - 1) * config.num_experts_per_tok
    fewest, most = config.num_experts_per_tok, config.n_routed_experts
    return (decoded + fewest) * one_of_each_layer, (decoded + most) * one_of_each_layer


def test_the_first_word_about_the_end_of_a_request_counts():
    clock = iter([0.0, 7.0]).__next__
    metrics = Metrics(ModelHandle(), ServerConfig("m"), clock)
    watch = metrics.watch(3)
    watch.end(FinishReason.STOP)
    watch.output(StepOutput("r", finish_reason=FinishReason.ABORT), 9.0)
    value = metrics.registry.get_sample_value
    name = f"{metric_names.REQUESTS_FINISHED}_total"
    assert value(name, {"model_name": "m", "finished_reason": "stop"}) == 1
    assert value(name, {"model_name": "m", "finished_reason": "abort"}) == 0
    assert value(f"{metric_names.REQUEST_LATENCY}_sum", {"model_name": "m"}) == 7.0


def test_the_rate_forgets_what_is_old():
    now = 0.0
    metrics = Metrics(ModelHandle(), ServerConfig("m"), lambda: now)
    for at in (0.0, 1.0, 2.0):
        metrics.rate.add(at)
    now = RATE_WINDOW_S + 1.5
    assert metrics.rate() == pytest.approx(1 / RATE_WINDOW_S)


NUMA_MAPS = """\
55aefa2d8000 default file=/usr/bin/head mapped=2 active=0 N0=2 kernelpagesize_kB=4
7f0000000000 interleave:0-1 anon=1000 dirty=1000 N0=500 N1=500 kernelpagesize_kB=4
7f1000000000 bind:1 file=/anon_hugepage\\040(deleted) huge dirty=3 N1=3 kernelpagesize_kB=2048
7fd2b33c3000 default file=/usr/lib/N9=4 mapped=28 mapmax=11 N0=28 kernelpagesize_kB=4
ffff00000000 default
"""


def test_pages_of_every_size_are_added_up_by_node():
    assert parse_numa_maps(NUMA_MAPS) == {0: 530 * 4096, 1: 500 * 4096 + 3 * (2 << 20)}


def test_the_page_tables_are_walked_now_and_then_only(tmp_path):
    now, path = 0.0, tmp_path / "numa_maps"
    memory = NodeMemory(path, lambda: now)
    assert memory() == {}
    path.write_text(NUMA_MAPS)
    now = REFRESH_S - 1
    assert memory() == {}
    now = REFRESH_S
    assert set(memory()) == {0, 1}


def test_a_walk_that_takes_long_is_seldom_repeated(tmp_path):
    path = tmp_path / "numa_maps"
    path.write_text(NUMA_MAPS)
    clock = iter([0.0, 0.0, 2.0, REFRESH_S + 1, 2.0 / MAX_SHARE, 2.0 / MAX_SHARE])
    memory = NodeMemory(path, clock.__next__)
    assert memory()  # from 0 to 2
    path.unlink()
    assert memory()
    assert memory() == {}


def test_memory_on_gpus_is_counted_once_one_is_used(monkeypatch):
    assert vram_bytes() == 0
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda index: 5 + index)
    assert vram_bytes() == 11
