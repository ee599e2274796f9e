"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from ktops_engine.server.body import read_json
from ktops_engine.server.errors import bad_request
from ktops_engine.server.openai_types import DetokenizeRequest, TokenizeRequest, validate
from ktops_engine.server.service import Service


def tokens_router(service: Service) -> APIRouter:
    """The routes that show what a text is to the model."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, object]:
        engine = service.handle.engine()
        body = validate(TokenizeRequest, await read_json(request, service.config.max_body_bytes))
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("Send either prompt or messages.", param="prompt")
        if body.prompt is None:
            _, ids = await service.chat_prompt(engine, body.messages, body.chat_template_kwargs)
        else:
            with_special = body.add_special_tokens is not False
            ids = await asyncio.to_thread(
                engine.tokenizer.encode, body.prompt, add_special_tokens=with_special
            )
        service.note_unknown_fields(body)
        return {"count": len(ids), "max_model_len": engine.max_model_len, "tokens": ids}

    @router.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, str]:
        engine = service.handle.engine()
        body = validate(DetokenizeRequest, await read_json(request, service.config.max_body_bytes))
        service.check_model(body.model)
        vocab_size = engine.tokenizer.vocab_size
        if any(token_id >= vocab_size for token_id in body.tokens):
            raise bad_request(
                f"Token ids must lie between 0 and {vocab_size - 1}.",
                param="tokens",
                code="invalid_token",
            )
        service.note_unknown_fields(body)
        text = await asyncio.to_thread(
            engine.tokenizer.decode, body.tokens, skip_special_tokens=False
        )
        return {"prompt": text}

    return router
