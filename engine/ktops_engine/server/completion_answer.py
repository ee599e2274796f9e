"""A text completion on the wire: whole, or as chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from ktops_engine.server.choice import Choice
from ktops_engine.server.generation import Generation
from ktops_engine.server.logprobs import completion_logprobs
from ktops_engine.server.openai_types import CompletionRequest
from ktops_engine.server.respond import StreamUsage
from ktops_engine.server.sse import frame
from ktops_engine.server.usage import usage
from ktops_engine.tokenizer import Tokenizer


class CompletionAnswer:
    """The answer to one completion request; `prompt_lengths` in tokens, one for each prompt."""

    def __init__(
        self,
        body: CompletionRequest,
        model_id: str,
        tokenizer: Tokenizer,
        generation: Generation,
        choices: Sequence[Choice],
        prompt_lengths: Sequence[int],
    ) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._generation = generation
        self._choices = choices
        self._prompt_lengths = prompt_lengths
        self._with_logprobs = body.logprobs is not None
        self._text_offsets = [0] * len(choices)
        self._stream_usage = StreamUsage(body)

    async def complete(self) -> dict[str, object]:
        texts: list[list[str]] = [[] for _ in self._choices]
        while (step := await self._generation.next()) is not None:
            choice = self._choices[step[0]]
            texts[choice.index].append(choice.advance(step[1]).content)
            if choice.finish_reason is not None:
                self._generation.finish(choice.index)
        return {
            **self._head(),
            "choices": [
                self._choice(choice, "".join(texts[choice.index])) for choice in self._choices
            ],
            "usage": self._usage(),
        }

    async def frames(self) -> AsyncGenerator[bytes]:
        while (step := await self._generation.next()) is not None:
            choice = self._choices[step[0]]
            text = choice.advance(step[1]).content
            if choice.finish_reason is not None:
                self._generation.finish(choice.index)
            if text or choice.finish_reason is not None:
                chunk = {**self._head(), "choices": [self._choice(choice, text)]}
                if self._stream_usage.at_end:
                    chunk["usage"] = self._usage() if self._stream_usage.in_every_chunk else None
                yield frame(chunk)
        if self._stream_usage.at_end:
            yield frame({**self._head(), "choices": [], "usage": self._usage()})

    def _choice(self, choice: Choice, text: str) -> dict[str, object]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
        }

    def _head(self) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model_id,
        }

    def _logprobs(self, choice: Choice) -> dict[str, object] | None:
        entries = choice.take_logprobs()
        if not self._with_logprobs or not entries:
            return None
        body, self._text_offsets[choice.index] = completion_logprobs(
            self._tokenizer, entries, self._text_offsets[choice.index]
        )
        return body

    def _usage(self) -> dict[str, object]:
        return usage(self._prompt_lengths, self._choices)
