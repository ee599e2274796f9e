"""A chat completion on the wire: whole, or as chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence

from ktops_engine.server.choice import Choice
from ktops_engine.server.generation import Generation
from ktops_engine.server.logprobs import chat_logprobs
from ktops_engine.server.openai_types import ChatRequest
from ktops_engine.server.reasoning import Delta
from ktops_engine.server.respond import StreamUsage
from ktops_engine.server.sse import frame
from ktops_engine.server.usage import usage
from ktops_engine.tokenizer import Tokenizer


class ChatAnswer:
    """The answer to one chat request, of `choices` over one prompt of `prompt_tokens` tokens."""

    def __init__(
        self,
        body: ChatRequest,
        model_id: str,
        tokenizer: Tokenizer,
        generation: Generation,
        choices: Sequence[Choice],
        prompt_tokens: int,
    ) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._generation = generation
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._with_logprobs = bool(body.logprobs)
        self._stream_usage = StreamUsage(body)

    async def complete(self) -> dict[str, object]:
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        while (step := await self._generation.next()) is not None:
            choice = self._choices[step[0]]
            deltas[choice.index].append(choice.advance(step[1]))
            if choice.finish_reason is not None:
                self._generation.finish(choice.index)
        return {
            **self._head("chat.completion"),
            "choices": [self._message(choice, deltas[choice.index]) for choice in self._choices],
            "usage": self._usage(),
        }

    async def frames(self) -> AsyncGenerator[bytes]:
        started: set[int] = set()
        while (step := await self._generation.next()) is not None:
            choice = self._choices[step[0]]
            delta = choice.advance(step[1])
            if choice.index not in started:
                # With the first token, not before: clients take the time of the first chunk.
                started.add(choice.index)
                yield self._chunk(choice, {"role": "assistant", "content": ""})
            for part in _parts(delta):
                yield self._chunk(choice, part, logprobs=self._logprobs(choice))
            if choice.finish_reason is not None:
                self._generation.finish(choice.index)
                yield self._chunk(
                    choice,
                    {},
                    logprobs=self._logprobs(choice),
                    finish_reason=choice.finish_reason,
                )
        if self._stream_usage.at_end:
            head = self._head("chat.completion.chunk")
            yield frame({**head, "choices": [], "usage": self._usage()})

    def _message(self, choice: Choice, deltas: Sequence[Delta]) -> dict[str, object]:
        reasoning = "".join(delta.reasoning for delta in deltas) or None
        return {
            "index": choice.index,
            "message": {
                "role": "assistant",
                "content": "".join(delta.content for delta in deltas),
                "refusal": None,
                "annotations": [],
                "reasoning_content": reasoning,
                "reasoning": reasoning,
            },
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
        }

    def _chunk(
        self,
        choice: Choice,
        delta: dict[str, str],
        *,
        logprobs: dict[str, object] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        chunk = self._head("chat.completion.chunk")
        chunk["choices"] = [
            {
                "index": choice.index,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": finish_reason,
            }
        ]
        if self._stream_usage.at_end:
            chunk["usage"] = self._usage() if self._stream_usage.in_every_chunk else None
        return frame(chunk)

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model_id,
        }

    def _logprobs(self, choice: Choice) -> dict[str, object] | None:
        """Those of the tokens not reported yet; null where there are none."""
        entries = choice.take_logprobs()
        if not self._with_logprobs or not entries:
            return None
        return chat_logprobs(self._tokenizer, entries)

    def _usage(self) -> dict[str, object]:
        return usage([self._prompt_tokens], self._choices)


def _parts(delta: Delta) -> Iterator[dict[str, str]]:
    if delta.reasoning:
        yield {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}
    if delta.content:
        yield {"content": delta.content}
