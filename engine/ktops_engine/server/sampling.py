"""From a request's fields to the engine's `SamplingParams`, within the context's bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from ktops_engine.server.config import ServerConfig
from ktops_engine.server.errors import ApiError, bad_request
from ktops_engine.server.openai_types import MAX_INT64, ChatRequest, GenerationRequest
from ktops_engine.types import SamplingParams

MAX_STOPS = 32
MAX_STOP_CHARS = 512
MAX_STOP_TOKEN_IDS = 1024

T = TypeVar("T", int, float)


def stop_strings(stop: object) -> tuple[str, ...]:
    """The `stop` field, a string or a list of strings. Raises ApiError 400."""
    stops = [stop] if isinstance(stop, str) else stop
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise bad_request("stop must be a string or a list of strings.", param="stop")
    if len(stops) > MAX_STOPS:
        raise bad_request(f"stop may hold at most {MAX_STOPS} strings.", param="stop")
    if not all(0 < len(item) <= MAX_STOP_CHARS for item in stops):
        raise bad_request(
            f"each stop string must have 1 to {MAX_STOP_CHARS} characters.", param="stop"
        )
    return tuple(stops)


def max_answer_tokens(
    body: GenerationRequest, config: ServerConfig, prompt_tokens: int, max_model_len: int
) -> int:
    """How many tokens may be generated: what was asked for, else what is left of the context.

    An explicit length that does not fit is refused, as OpenAI does; the server's default is
    shortened to what fits. Raises ApiError 400 context_length_exceeded.
    """
    room = max_model_len - prompt_tokens
    if room < 1:
        raise _context_exceeded(
            f"the prompt has {prompt_tokens} tokens, which leaves no room for an answer",
            max_model_len,
            body,
        )
    asked = body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        asked = body.max_completion_tokens
    if asked is None:
        return min(room, config.max_new_tokens or room)
    if asked > room:
        raise _context_exceeded(
            f"{prompt_tokens} tokens in the prompt and {asked} for the answer make "
            f"{prompt_tokens + asked}",
            max_model_len,
            body,
        )
    return asked


def sampling_params(
    body: GenerationRequest,
    defaults: SamplingParams,
    *,
    max_tokens: int,
    vocab_size: int,
    logprobs: int | None,
) -> SamplingParams:
    """The request's wishes over the server's defaults. Raises ApiError 400."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens is {min_tokens}, but at most {max_tokens} tokens may be generated.",
            param="min_tokens",
        )
    return replace(
        defaults,
        temperature=_or(body.temperature, defaults.temperature),
        top_p=_or(body.top_p, defaults.top_p),
        top_k=min(max(_or(body.top_k, defaults.top_k), 0), vocab_size),  # -1 also means off
        min_p=_or(body.min_p, defaults.min_p),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(body.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, defaults.frequency_penalty),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        seed=body.seed,
        stop_token_ids=_stop_token_ids(body, vocab_size),
        ignore_eos=bool(body.ignore_eos),
        logit_bias=_logit_bias(body.logit_bias or {}, vocab_size),
        logprobs=logprobs,
    )


def for_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Choice 0 keeps the seed, so n does not change it; the others get seeds derived from it."""
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=(params.seed + index) % MAX_INT64)


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def _stop_token_ids(body: GenerationRequest, vocab_size: int) -> tuple[int, ...]:
    ids = body.stop_token_ids or []
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise bad_request(
            f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} ids.", param="stop_token_ids"
        )
    if any(token_id >= vocab_size for token_id in ids):
        raise bad_request(
            f"stop_token_ids must lie between 0 and {vocab_size - 1}.", param="stop_token_ids"
        )
    return tuple(ids)


def _logit_bias(bias: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9 and int(key) < vocab_size):
            raise bad_request(
                f"logit_bias keys must be token ids between 0 and {vocab_size - 1}.",
                param="logit_bias",
            )
        result[int(key)] = value
    return result


def _context_exceeded(why: str, max_model_len: int, body: GenerationRequest) -> ApiError:
    return bad_request(
        f"This model's context is {max_model_len} tokens, but {why}. Shorten the prompt or ask "
        "for fewer tokens.",
        param="messages" if isinstance(body, ChatRequest) else "prompt",
        code="context_length_exceeded",
    )
