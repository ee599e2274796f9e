"""The engine as its callers see it: threads, order, aborts, refusals, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tiny_gguf import V3, TinyModel, write_tiny_gguf

from ktops_engine import LLM, EngineConfig, FinishReason, KtopsError, SamplingParams
from ktops_engine.source import open_source

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_gguf(tmp_path_factory.mktemp("model"), V3)


@pytest.fixture
def llm(tiny: TinyModel, native_build: object) -> Iterator[LLM]:
    llm = LLM.load(EngineConfig(tiny.path, tiny.config_folder, ctx_size=2048, max_waiting=2))
    yield llm
    llm.shutdown()


class Listener:
    """Collects one request's outputs; `first` and `ended` let a test wait for them."""

    def __init__(self) -> None:
        self.outputs = []
        self.first, self.ended = threading.Event(), threading.Event()

    def __call__(self, output) -> None:
        self.outputs.append(output)
        self.first.set()
        if output.finish_reason is not None:
            self.ended.set()

    def wait(self):
        assert self.ended.wait(60)
        return self.outputs[-1]


def test_generate_yields_every_token_and_the_reason(llm):
    outputs = list(llm.generate([5, 6, 7], GREEDY))
    assert len(outputs) == 8
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert [output.token_id for output in llm.generate([5, 6, 7], GREEDY)] == [
        output.token_id for output in outputs
    ]


def test_an_answer_ends_where_the_context_ends(llm):
    prompt = [5] * (llm.max_model_len - 3)
    outputs = list(llm.generate(prompt, ENDLESS))
    assert (len(outputs), outputs[-1].finish_reason) == (3, FinishReason.LENGTH)


def test_without_a_seed_draws_differ_and_with_one_they_repeat(llm):
    def draw(seed):
        params = SamplingParams(temperature=5.0, top_p=1.0, max_tokens=16, seed=seed)
        return [output.token_id for output in llm.generate([5], params)]

    assert draw(3) == draw(3)
    assert draw(None) != draw(None)


def test_requests_queue_and_all_are_answered(llm):
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        llm.submit([5, 6], GREEDY, listener)
        assert listeners[0].first.wait(60)  # it runs: the queue is empty again
    answers = [[output.token_id for output in listener.outputs] for listener in listeners
               if listener.wait()]  # fmt: skip
    assert answers[0] == answers[1] == answers[2]


def test_a_running_and_a_waiting_request_can_be_aborted_and_the_next_runs(llm):
    running, waiting, last = Listener(), Listener(), Listener()
    llm.submit([5], ENDLESS, running, "running")
    llm.submit([5], ENDLESS, waiting, "waiting")
    llm.submit([5], GREEDY, last)
    assert running.first.wait(60)
    llm.abort("waiting")
    llm.abort("running")
    llm.abort("running")
    llm.abort("never seen")
    assert running.wait().finish_reason is FinishReason.ABORT
    assert [output.finish_reason for output in waiting.outputs] == [FinishReason.ABORT]
    assert last.wait().finish_reason is FinishReason.LENGTH


def test_leaving_generate_early_frees_the_engine(llm):
    for _ in llm.generate([5], ENDLESS):
        break
    assert len(list(llm.generate([5], GREEDY))) == 8


def test_a_full_queue_is_refused(llm):
    running = Listener()
    llm.submit([5], ENDLESS, running)
    assert running.first.wait(60)
    llm.submit([5], ENDLESS, Listener())
    llm.submit([5], ENDLESS, Listener())
    with pytest.raises(KtopsError) as caught:
        llm.submit([5], ENDLESS, Listener())
    assert caught.value.code == "queue-full"
    assert (llm.num_running, llm.num_waiting) == (1, 2)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ([], "empty-prompt"),
        ([5, -1], "invalid-token"),
        ([10**9], "invalid-token"),
        ([5] * 2048, "context-length-exceeded"),
    ],
)
def test_impossible_prompts_are_refused_at_once(llm, prompt, code):
    with pytest.raises(KtopsError) as caught:
        llm.submit(prompt, GREEDY, Listener())
    assert caught.value.code == code


def test_a_failing_listener_does_not_stop_the_others(llm, caplog):
    def broken(output) -> None:
        raise RuntimeError("listener broke")

    llm.submit([5], GREEDY, broken)
    assert len(list(llm.generate([5], GREEDY))) == 8
    assert "listener broke" in caplog.text


def test_a_failing_step_ends_every_request_with_the_reason(llm, monkeypatch):
    def broken(batch, meanwhile) -> None:
        raise RuntimeError("the kernel broke")

    running, waiting = Listener(), Listener()
    llm.submit([5], ENDLESS, running)
    llm.submit([5], ENDLESS, waiting)
    assert running.first.wait(60)
    monkeypatch.setattr(llm._loop._runner, "run", broken)
    assert running.wait().finish_reason is FinishReason.ERROR
    assert "the kernel broke" in waiting.wait().error
    assert not llm.is_alive
    with pytest.raises(KtopsError) as caught:
        llm.submit([5], GREEDY, Listener())
    assert caught.value.code == "engine-dead"
    assert "the kernel broke" in caught.value.message


def test_shutdown_ends_running_requests_and_may_be_called_twice(llm):
    running = Listener()
    llm.submit([5], ENDLESS, running)
    assert running.first.wait(60)
    llm.shutdown()
    llm.shutdown()
    assert running.wait().finish_reason is FinishReason.ABORT


def test_a_failed_load_gives_memory_and_threads_back(tiny, native_build, monkeypatch):
    freed = []
    monkeypatch.setattr("ktops_engine.models.weights.Weights.free", lambda self: freed.append(self))
    broken = tiny.path.with_name("broken.gguf")
    data = tiny.path.read_bytes()
    broken.write_bytes(data.replace(b"blk.2.attn_norm.weight", b"blk.2.attn_nurm.weight"))
    threads = threading.active_count()
    with pytest.raises(KtopsError) as caught:
        LLM.load(EngineConfig(broken, tiny.config_folder))
    assert caught.value.code == "gguf-missing-tensor"
    assert "blk.2.attn_norm.weight" in caught.value.message
    assert len(freed) == 1
    assert threading.active_count() == threads


def test_without_the_native_library_the_error_names_the_command(tiny, monkeypatch):
    monkeypatch.setattr("ktops_engine.loader.find_current", lambda: None)
    with pytest.raises(KtopsError) as caught:
        LLM.load(EngineConfig(tiny.path, tiny.config_folder))
    assert (caught.value.code, caught.value.hint) == ("native-missing", "ktops build")


def test_what_a_caller_has_opened_is_not_opened_again(tiny, native_build, monkeypatch):
    config = EngineConfig(tiny.path, tiny.config_folder)
    source = open_source(config)
    for reader in ("open_gguf", "known_use"):
        monkeypatch.delattr(f"ktops_engine.source.{reader}")
    llm = LLM.load(config, source=source)
    assert llm.gguf is source.gguf
    llm.shutdown()
