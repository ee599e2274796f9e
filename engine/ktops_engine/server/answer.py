"""What a chat answer and a text answer have in common: who gives it, its steps, its counts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from ktops_engine.server.choice import Choice
from ktops_engine.server.generation import Generation
from ktops_engine.server.openai_types import GenerationRequest
from ktops_engine.server.reasoning import Delta
from ktops_engine.server.respond import StreamUsage
from ktops_engine.server.usage import usage
from ktops_engine.tokenizer import Tokenizer


class OpenAIAnswer:
    """The answer to one request, of `choices` over prompts of `prompt_lengths` tokens. Its id
    begins with `kind`."""

    def __init__(
        self,
        kind: str,
        body: GenerationRequest,
        model_id: str,
        tokenizer: Tokenizer,
        generation: Generation,
        choices: Sequence[Choice],
        prompt_lengths: Sequence[int],
    ) -> None:
        self._id = f"{kind}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._generation = generation
        self._choices = choices
        self._prompt_lengths = prompt_lengths
        self._stream_usage = StreamUsage(body)

    async def _next(self) -> tuple[Choice, Delta] | None:
        """The next step of any choice and what it adds; None when all have ended.

        Raises ApiError as `Generation.next`.
        """
        step = await self._generation.next()
        if step is None:
            return None
        choice = self._choices[step[0]]
        delta = choice.advance(step[1])
        if choice.finish_reason is not None:
            self._generation.finish(choice.index)
        return choice, delta

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model_id,
        }

    def _usage(self) -> dict[str, object]:
        return usage(self._prompt_lengths, self._choices)

    def _chunk_usage(self) -> dict[str, object]:
        """The field `usage` of a chunk before the last: absent, null, or the counts so far."""
        if not self._stream_usage.at_end:
            return {}
        return {"usage": self._usage() if self._stream_usage.in_every_chunk else None}
