"""A real tokenizer of one token a byte, an engine that plays scripts, and servers on loopback."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ktops_engine.errors import KtopsError
from ktops_engine.server import ModelHandle, ServerConfig, create_app, open_listener, run_server
from ktops_engine.stats import EngineStats, ExpertTraffic, StepCounts
from ktops_engine.tokenizer import Tokenizer, load_tokenizer
from ktops_engine.types import FinishReason, SamplingParams, StepOutput, TokenLogprobs

PATIENCE_S = 20  # for what should come at once, on a busy machine
SPECIAL_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
)
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "<｜Assistant｜>{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'tool' %}[tool]{{ message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>"
    "{% if thinking is not defined or thinking %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Ids 0 to 255 are bytes in the byte-level alphabet's order, 256 and up the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens(
        [AddedToken(token, special=token.startswith("<｜"), normalized=False)
         for token in SPECIAL_TOKENS]
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tokenizer")
    inner.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(SimpleNamespace(metadata={}, tensors={}), folder)


@dataclass
class Played:
    """One request as the engine saw it."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    aborted: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


class FakeEngine:
    """Plays `scripts[i % len(scripts)]` to the i-th request, a token a step, each on a thread.

    A script is a list of token ids, of exceptions' messages (str: the request fails with it) and
    of events that must be set before the script goes on. After it come end-of-sequence tokens.
    """

    def __init__(self, tokenizer: Tokenizer, max_model_len: int = 400) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.max_waiting = 64
        self.scripts: list[list[int | str | threading.Event]] = [[]]
        self.requests: list[Played] = []
        self.submitted: queue.SimpleQueue[Played] = queue.SimpleQueue()
        self.dead_reason: str | None = None
        self.stuck_reason: str | None = None
        self.num_shutdowns = 0
        self._ids = itertools.count()

    @property
    def is_alive(self) -> bool:
        return self.dead_reason is None

    def stats(self) -> EngineStats:
        running = sum(not played.ended.is_set() for played in self.requests)
        steps = StepCounts(prompt_tokens=7, generation_tokens=5, decode_seconds=0.5)
        return EngineStats(running, 0, 8, 6, steps, ExpertTraffic(4000, 0.25))

    def say(self, *parts: str | threading.Event) -> None:
        """From now on every request is answered with these texts, waiting at the events."""
        script: list[int | str | threading.Event] = []
        for part in parts:
            script += self.tokenizer.encode(part) if isinstance(part, str) else [part]
        self.scripts = [script]

    def submit(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        on_output: Callable[[StepOutput], None],
        request_id: str | None = None,
    ) -> str:
        if self.dead_reason is not None:
            raise KtopsError("engine-dead", self.dead_reason, "ktops serve")
        number = next(self._ids)
        running = sum(not played.ended.is_set() for played in self.requests)
        if running >= self.max_waiting:
            raise KtopsError("queue-full", "the queue is full", "try later")
        played = Played(request_id or f"r{number}", list(prompt_token_ids), params)
        self.requests.append(played)
        script = self.scripts[number % len(self.scripts)]
        threading.Thread(target=self._play, args=(played, script, on_output), daemon=True).start()
        self.submitted.put(played)
        return played.id

    def abort(self, request_id: str) -> None:
        for played in self.requests:
            if played.id == request_id and not played.ended.is_set():
                played.aborted.set()

    def shutdown(self) -> None:
        self.num_shutdowns += 1

    def _play(
        self,
        played: Played,
        script: list[int | str | threading.Event],
        on_output: Callable[[StepOutput], None],
    ) -> None:
        def end(**fields: object) -> None:
            played.ended.set()
            on_output(StepOutput(played.id, **fields))

        params, sampled = played.params, 0
        eos = self.tokenizer.eos_token_id
        for item in itertools.chain(script, itertools.repeat(eos)):
            if isinstance(item, threading.Event):
                while not item.wait(0.005) and not played.aborted.is_set():
                    pass
                continue
            if played.aborted.is_set():
                return end(finish_reason=FinishReason.ABORT)
            if isinstance(item, str):
                return end(finish_reason=FinishReason.ERROR, error=item)
            sampled += 1
            fields = {"token_id": item, "logprobs": _logprobs(item, params), "num_cached_tokens": 3}
            is_stop = item in params.stop_token_ids or (item == eos and not params.ignore_eos)
            if is_stop and sampled > params.min_tokens:
                return end(**fields, finish_reason=FinishReason.STOP)
            if sampled == params.max_tokens:
                return end(**fields, finish_reason=FinishReason.LENGTH)
            on_output(StepOutput(played.id, **fields))
        raise AssertionError("a script without end ended")


def _logprobs(token_id: int, params: SamplingParams) -> TokenLogprobs | None:
    if params.logprobs is None:
        return None
    top = tuple(((token_id + at) % 256, -0.25 - at) for at in range(params.logprobs))
    return TokenLogprobs(-0.25, top)


@dataclass
class Live:
    """A server on a real port."""

    url: str
    client: httpx.Client
    handle: ModelHandle

    def chat(self, content: object = "hi", **fields: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: object = "hi", **fields: object) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": prompt, **fields})


Serve = Callable[..., contextlib.AbstractContextManager[Live]]


@contextlib.contextmanager
def serve(engine: object | None, *, grace_s: float = 5.0, **config: object) -> Iterator[Live]:
    """A server on a free port in a thread, stopped at the end; `engine` None: still loading."""
    handle = ModelHandle()
    if engine is not None:
        handle.set_ready(engine)
    app = create_app(handle, ServerConfig(**{"model_id": "test-model", **config}))
    listener = open_listener("127.0.0.1", 0)
    addresses: queue.SimpleQueue = queue.SimpleQueue()
    thread = threading.Thread(
        target=run_server,
        args=(app, handle, listener),
        kwargs={"grace_s": grace_s, "on_listening": addresses.put},
        daemon=True,
    )
    thread.start()
    url = addresses.get(timeout=PATIENCE_S).url
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            yield Live(url, client, handle)
    finally:
        handle.request_stop()
        handle.request_stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="session", name="serve")
def serve_fixture() -> Serve:
    return serve


@pytest.fixture(scope="module")
def module_engine(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture(scope="module")
def module_server(module_engine: FakeEngine) -> Iterator[Live]:
    with serve(module_engine) as live:
        yield live


@pytest.fixture
def engine(module_engine: FakeEngine) -> Iterator[FakeEngine]:
    """The engine behind `live`, as new."""
    module_engine.say("Hm.\n</think>\n\nHello, 世界!")
    module_engine.requests.clear()
    module_engine.submitted = queue.SimpleQueue()
    module_engine.max_waiting = 64
    yield module_engine
    module_engine.dead_reason = module_engine.stuck_reason = None


@pytest.fixture
def live(module_server: Live, engine: FakeEngine) -> Live:
    """A server with default settings, one for the tests of a file."""
    return module_server


@pytest.fixture
def new_engine(tokenizer: Tokenizer) -> Callable[[], FakeEngine]:
    return lambda: FakeEngine(tokenizer)


def events(response: httpx.Response) -> list[dict[str, object]]:
    """The JSON of every frame, after checking that frames are exact and [DONE] is last."""
    frames = [part for part in response.text.split("\n\n") if not part.startswith(":")]
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    assert all(part.startswith("data: {") and "\n" not in part for part in frames)
    return [json.loads(part.removeprefix("data: ")) for part in frames]


@pytest.fixture(scope="session", name="events")
def events_fixture() -> Callable[[httpx.Response], list[dict[str, object]]]:
    return events


@pytest.fixture(scope="session")
def patience_s() -> float:
    return PATIENCE_S
