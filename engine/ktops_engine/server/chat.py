"""POST /chat/completions."""

from __future__ import annotations

from fastapi import APIRouter

from ktops_engine.server.chat_answer import ChatAnswer
from ktops_engine.server.choice import Choice
from ktops_engine.server.generation import Generation, Job
from ktops_engine.server.generation_route import generation_router
from ktops_engine.server.openai_types import ChatRequest
from ktops_engine.server.reasoning import THINK_OPEN, ReasoningSplit
from ktops_engine.server.sampling import (
    for_choice,
    max_answer_tokens,
    sampling_params,
    stop_strings,
)
from ktops_engine.server.service import Service
from ktops_engine.server.text_stream import TextStream
from ktops_engine.server.unsupported import refuse_unsupported_chat


def chat_router(service: Service) -> APIRouter:
    """The route of chat completions."""
    return generation_router("/chat/completions", service, ChatRequest, _start)


async def _start(service: Service, body: ChatRequest) -> tuple[Generation, ChatAnswer]:
    """Check the rest of the request and hand it to the engine. Raises ApiError."""
    refuse_unsupported_chat(body)
    engine, config = service.handle.engine(), service.config
    tokenizer = engine.tokenizer
    stops = stop_strings(body.stop)
    text, prompt = await service.chat_prompt(engine, body.messages, body.chat_template_kwargs)
    params = sampling_params(
        body,
        config.sampling,
        max_tokens=max_answer_tokens(body, config, len(prompt), engine.max_model_len),
        vocab_size=tokenizer.vocab_size,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    service.note_unknown_fields(body)
    opened = text.rstrip().endswith(THINK_OPEN)
    choices = [
        Choice(
            index,
            TextStream(
                tokenizer,
                stop=stops,
                min_tokens=params.min_tokens,
                split=ReasoningSplit(opened=opened),
            ),
        )
        for index in range(body.n or 1)
    ]
    jobs = [Job(prompt, for_choice(params, choice.index)) for choice in choices]
    generation = Generation.start(service.handle, jobs, service.metrics)
    answer = ChatAnswer(body, config.model_id, tokenizer, generation, choices, [len(prompt)])
    return generation, answer
