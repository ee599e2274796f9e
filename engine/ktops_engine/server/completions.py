"""POST /completions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from ktops_engine.server.choice import Choice
from ktops_engine.server.completion_answer import CompletionAnswer
from ktops_engine.server.errors import bad_request
from ktops_engine.server.generation import Generation, Job
from ktops_engine.server.generation_route import generation_router
from ktops_engine.server.openai_types import MAX_CHOICES, CompletionRequest
from ktops_engine.server.sampling import (
    for_choice,
    max_answer_tokens,
    sampling_params,
    stop_strings,
)
from ktops_engine.server.service import Service
from ktops_engine.server.text_stream import TextStream
from ktops_engine.server.unsupported import refuse_unsupported_completion
from ktops_engine.tokenizer import Tokenizer


def completions_router(service: Service) -> APIRouter:
    """The route of text completions."""
    return generation_router("/completions", service, CompletionRequest, _start)


async def _start(service: Service, body: CompletionRequest) -> tuple[Generation, CompletionAnswer]:
    """Check the rest of the request and hand it to the engine. Raises ApiError."""
    refuse_unsupported_completion(body)
    engine, config = service.handle.engine(), service.config
    tokenizer = engine.tokenizer
    stops = stop_strings(body.stop)
    prompts = _prompts(body.prompt)
    num_choices = body.n or 1
    if len(prompts) * num_choices > MAX_CHOICES:
        raise bad_request(
            f"One request may ask for {MAX_CHOICES} completions; this one asks for "
            f"{len(prompts)} prompts times {num_choices}.",
            param="prompt",
        )
    prompt_ids = await asyncio.to_thread(lambda: [_encode(tokenizer, item) for item in prompts])
    jobs: list[Job] = []
    for ids in prompt_ids:
        params = sampling_params(
            body,
            config.sampling,
            max_tokens=max_answer_tokens(body, config, len(ids), engine.max_model_len),
            vocab_size=tokenizer.vocab_size,
            logprobs=body.logprobs,
        )
        jobs += [Job(ids, for_choice(params, index)) for index in range(num_choices)]
    service.note_unknown_fields(body)
    choices = [
        Choice(index, TextStream(tokenizer, stop=stops, min_tokens=job.params.min_tokens))
        for index, job in enumerate(jobs)
    ]
    generation = Generation.start(service.handle, jobs, service.metrics)
    answer = CompletionAnswer(
        body, config.model_id, tokenizer, generation, choices, [len(ids) for ids in prompt_ids]
    )
    return generation, answer


def _prompts(prompt: object) -> list[str] | list[list[int]]:
    """The `prompt` field: a text, token ids, or a list of either. Raises ApiError 400."""
    if prompt is None:
        raise bad_request("prompt is required.", param="prompt", code="missing_value")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return prompt
        if _are_token_ids(prompt):
            return [prompt]
        if all(isinstance(item, list) and _are_token_ids(item) for item in prompt):
            return prompt
    raise bad_request(
        "prompt must be a string, a list of strings, a list of token ids or a list of lists of "
        "token ids, none of them empty.",
        param="prompt",
    )


def _are_token_ids(items: list[object]) -> bool:
    return bool(items) and all(type(item) is int and item >= 0 for item in items)


def _encode(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        if not ids:
            raise bad_request("The prompt has no tokens.", param="prompt", code="empty_prompt")
        return ids
    if max(prompt) >= tokenizer.vocab_size:
        raise bad_request(
            f"Token ids must lie between 0 and {tokenizer.vocab_size - 1}.",
            param="prompt",
            code="invalid_token",
        )
    return prompt
