"""The engine's front door: load a model, submit token ids, get tokens back."""

from __future__ import annotations

import os
import queue
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.kv_cache import BlockPool
from ktops_engine.loader import LoadedModel, OnNote, OnProgress, load_model
from ktops_engine.loop import EngineLoop, OnOutput
from ktops_engine.machine import MachineFacts
from ktops_engine.measured_speeds import SpeedKeeper, speed_key
from ktops_engine.model_config import ModelConfig
from ktops_engine.node_memory import NodeShare
from ktops_engine.plan import Placement, facts_of_files
from ktops_engine.sampler import Sampler
from ktops_engine.scheduler import Scheduler, SchedulerLimits
from ktops_engine.source import ModelSource
from ktops_engine.stats import EngineStats
from ktops_engine.text import text
from ktops_engine.tokenizer import Tokenizer
from ktops_engine.types import WARM_UP, LoadProgress, Request, SamplingParams, StepOutput


class LLM:
    """One loaded model with its engine thread. Make one with `LLM.load`, end it with `shutdown`."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._loaded = loaded
        placement, eos_token_ids = loaded.placement, loaded.config.eos_token_ids
        limits = SchedulerLimits(
            max_model_len=placement.ctx_size,
            prefill_chunk=placement.prefill_chunk,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
        )
        blocks = BlockPool(placement.num_blocks, placement.block_size)
        self._runner = loaded.new_runner(Sampler(eos_token_ids))
        self._loop = EngineLoop(Scheduler(blocks, limits, eos_token_ids), self._runner)
        self._speeds = SpeedKeeper(_speed_key(loaded, config), self._loop.speeds)

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        on_progress: OnProgress | None = None,
        on_note: OnNote | None = None,
        machine: MachineFacts | None = None,
        source: ModelSource | None = None,
    ) -> LLM:
        """Check, plan, read and start. Everything taken is given back when a stage fails.

        `on_progress` may be called from several threads, `on_note` gets one sentence at a time.
        `machine` and `source`, of the same `config`: what a caller who has planned found; None:
        they are asked here.
        Raises KtopsError: whatever is wrong with the files, the machine or the native library.
        """
        loaded = load_model(config, on_progress, on_note, machine, source)
        try:
            if loaded.placement.gpus and on_progress is not None:
                on_progress(LoadProgress(WARM_UP, 0, 0))
            return cls(loaded, config)
        except BaseException:
            loaded.free()
            raise

    @property
    def gguf(self) -> GgufModel:
        return self._loaded.gguf

    @property
    def model_config(self) -> ModelConfig:
        return self._loaded.config

    @property
    def placement(self) -> Placement:
        return self._loaded.placement

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded.tokenizer

    @property
    def node_shares(self) -> tuple[NodeShare, ...]:
        """Where the weights lie; empty when they are not shared out over NUMA nodes."""
        return self._loaded.node_shares

    @property
    def isa(self) -> str:
        """The instruction set the native kernels run on, such as "avx512"."""
        return self._loaded.native.isa

    @property
    def max_model_len(self) -> int:
        """Tokens one request may span, prompt and answer together."""
        return self._loaded.placement.ctx_size

    @property
    def num_running(self) -> int:
        return self._loop.num_running

    @property
    def num_waiting(self) -> int:
        return self._loop.num_waiting

    def stats(self) -> EngineStats:
        """What the engine does now and has done since it started. Cheap; from any thread."""
        return self._loop.stats(self._runner.expert_traffic())

    @property
    def is_alive(self) -> bool:
        return self._loop.dead_reason is None

    @property
    def dead_reason(self) -> str | None:
        return self._loop.dead_reason

    @property
    def stuck_reason(self) -> str | None:
        """Why the step that runs seems never to end; None while all is well. It may go on yet."""
        return self._loop.stuck_reason

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        on_output: OnOutput,
        request_id: str | None = None,
    ) -> str:
        """Queue a request and return its id at once.

        `on_output` is called on the engine's thread, in order; its last call carries a finish
        reason. Raises KtopsError: empty-prompt, invalid-token, context-length-exceeded, queue-full,
        engine-dead.
        """
        self._check_prompt(prompt_token_ids)
        if params.seed is None:
            params = replace(params, seed=int.from_bytes(os.urandom(8)))
        request = Request(request_id or uuid.uuid4().hex, list(prompt_token_ids), params)
        self._loop.submit(request, on_output)
        return request.id

    def abort(self, request_id: str) -> None:
        """End a request; its listener gets a last output with reason ABORT unless it has ended."""
        self._loop.abort(request_id)

    def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> Iterator[StepOutput]:
        """Submit and yield outputs as they come. Leaving the iteration early aborts the request."""
        outputs: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        request_id = self.submit(prompt_token_ids, params, outputs.put)
        try:
            while True:
                output = outputs.get()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self.abort(request_id)

    def shutdown(self) -> None:
        """Abort what runs, end the threads and free the weights. May be called again."""
        self._loop.shutdown()
        self._speeds.close()
        self._loaded.free()

    def _check_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        if not prompt_token_ids:
            raise KtopsError(
                "empty-prompt",
                text("the prompt has no tokens"),
                text("send some text"),
                exit_status=EXIT_USAGE,
            )
        vocab_size = self.model_config.vocab_size
        if not 0 <= min(prompt_token_ids) <= max(prompt_token_ids) < vocab_size:
            raise KtopsError(
                "invalid-token",
                text("token ids must lie between 0 and {highest}", highest=vocab_size - 1),
                text("use this model's tokenizer: POST /tokenize"),
                exit_status=EXIT_USAGE,
            )
        if len(prompt_token_ids) >= self.max_model_len:
            raise KtopsError(
                "context-length-exceeded",
                text(
                    "the prompt has {count} tokens; prompt and answer together may span {limit}",
                    count=len(prompt_token_ids),
                    limit=self.max_model_len,
                ),
                text("send a shorter prompt, or start the server with a larger --ctx-size"),
                exit_status=EXIT_USAGE,
            )


def _speed_key(loaded: LoadedModel, config: EngineConfig) -> str:
    """What the speeds of this engine are measured of."""
    return speed_key(
        loaded.placement,
        facts_of_files(loaded.gguf, loaded.config),
        loaded.machine,
        loaded.library.sources_hash,
        is_random=config.dummy is not None,
    )
