"""The nouns that travel through the engine: parameters, requests, batches, outputs, progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request ended. `STOP`: end-of-sequence or a stop token; `LENGTH`: a limit was reached;
    `ABORT`: the caller gave up; `ERROR`: the engine failed, see `StepOutput.error`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Defaults are greedy-free DeepSeek-R1 settings.

    `temperature` 0 means greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch those filters off.
    `max_tokens` None means: up to the context. `logprobs` None: none; n: the chosen token's log
    probability and those of the n likeliest tokens.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None
    min_tokens: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities (natural log, before temperature) of one sampled position."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampled:
    """The runner's answer for one batch item that samples: a token, or why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


@dataclass(frozen=True)
class StepOutput:
    """What one step gave one request: at most one token, and the reason when it was the last.

    `token_id` is None when the request ended without a token (abort, error). An end-of-sequence
    or stop token is reported like any other, together with `finish_reason` STOP. `queue_seconds`
    is how long the request waited before its first step.
    """

    request_id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    queue_seconds: float = 0.0


@dataclass(eq=False)
class Request:
    """One sequence being generated. The scheduler owns its state; the runner only reads it."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    output_token_ids: list[int] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    arrived_at: float = 0.0
    queue_seconds: float = 0.0

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.output_token_ids

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)


@dataclass(frozen=True)
class BatchItem:
    """The part of a request that a step computes: tokens [start, start + num_tokens).

    `samples` is true when the step reaches the request's last token, so a next token is drawn.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool


@dataclass(frozen=True)
class Batch:
    """What one step computes, in the order of the rows of its activations."""

    items: tuple[BatchItem, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


WARM_UP = "warm-up"


@dataclass(frozen=True)
class LoadProgress:
    """A point of loading. `stage` is a short lower-case word such as "read" or `WARM_UP`, which
    has no bytes: the GPU kernels are compiled, or taken from Triton's cache."""

    stage: str
    done_bytes: int
    total_bytes: int
