"""A text completion on the wire: whole, or as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from ktops_engine.server.answer import OpenAIAnswer
from ktops_engine.server.choice import Choice
from ktops_engine.server.generation import Generation
from ktops_engine.server.logprobs import completion_logprobs
from ktops_engine.server.openai_types import CompletionRequest
from ktops_engine.server.sse import frame
from ktops_engine.tokenizer import Tokenizer

KIND = "text_completion"


class CompletionAnswer(OpenAIAnswer):
    """The answer to one completion request; see OpenAIAnswer."""

    def __init__(
        self,
        body: CompletionRequest,
        model_id: str,
        tokenizer: Tokenizer,
        generation: Generation,
        choices: Sequence[Choice],
        prompt_lengths: Sequence[int],
    ) -> None:
        super().__init__("cmpl", body, model_id, tokenizer, generation, choices, prompt_lengths)
        self._with_logprobs = body.logprobs is not None
        self._text_offsets = [0] * len(choices)

    async def complete(self) -> dict[str, object]:
        texts: list[list[str]] = [[] for _ in self._choices]
        while (step := await self._next()) is not None:
            choice, delta = step
            texts[choice.index].append(delta.content)
        return {
            **self._head(KIND),
            "choices": [
                self._choice(choice, "".join(texts[choice.index])) for choice in self._choices
            ],
            "usage": self._usage(),
        }

    async def frames(self) -> AsyncGenerator[bytes]:
        while (step := await self._next()) is not None:
            choice, delta = step
            if delta.content or choice.finish_reason is not None:
                choices = [self._choice(choice, delta.content)]
                yield frame({**self._head(KIND), "choices": choices, **self._chunk_usage()})
        if self._stream_usage.at_end:
            yield frame({**self._head(KIND), "choices": [], "usage": self._usage()})

    def _choice(self, choice: Choice, text: str) -> dict[str, object]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": self._logprobs(choice),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, choice: Choice) -> dict[str, object] | None:
        entries = choice.take_logprobs()
        if not self._with_logprobs or not entries:
            return None
        body, self._text_offsets[choice.index] = completion_logprobs(
            self._tokenizer, entries, self._text_offsets[choice.index]
        )
        return body
