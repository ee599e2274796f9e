"""A chat completion on the wire: whole, or as chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence

from ktops_engine.server.answer import OpenAIAnswer
from ktops_engine.server.choice import Choice
from ktops_engine.server.generation import Generation
from ktops_engine.server.logprobs import chat_logprobs
from ktops_engine.server.openai_types import ChatRequest
from ktops_engine.server.reasoning import Delta
from ktops_engine.server.sse import frame
from ktops_engine.tokenizer import Tokenizer


class ChatAnswer(OpenAIAnswer):
    """The answer to one chat request; see OpenAIAnswer."""

    def __init__(
        self,
        body: ChatRequest,
        model_id: str,
        tokenizer: Tokenizer,
        generation: Generation,
        choices: Sequence[Choice],
        prompt_lengths: Sequence[int],
    ) -> None:
        super().__init__("chatcmpl", body, model_id, tokenizer, generation, choices, prompt_lengths)
        self._with_logprobs = bool(body.logprobs)

    async def complete(self) -> dict[str, object]:
        deltas: list[list[Delta]] = [[] for _ in self._choices]
        while (step := await self._next()) is not None:
            choice, delta = step
            deltas[choice.index].append(delta)
        return {
            **self._head("chat.completion"),
            "choices": [self._message(choice, deltas[choice.index]) for choice in self._choices],
            "usage": self._usage(),
        }

    async def frames(self) -> AsyncGenerator[bytes]:
        started: set[int] = set()
        while (step := await self._next()) is not None:
            choice, delta = step
            if choice.index not in started:
                # With the first token, not before: clients take the time of the first chunk.
                started.add(choice.index)
                yield self._chunk(choice, {"role": "assistant", "content": ""})
            for part in _parts(delta):
                yield self._chunk(choice, part, logprobs=self._logprobs(choice))
            if choice.finish_reason is not None:
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
        return frame({**chunk, **self._chunk_usage()})

    def _logprobs(self, choice: Choice) -> dict[str, object] | None:
        """Those of the tokens not reported yet; null where there are none."""
        entries = choice.take_logprobs()
        if not self._with_logprobs or not entries:
            return None
        return chat_logprobs(self._tokenizer, entries)


def _parts(delta: Delta) -> Iterator[dict[str, str]]:
    if delta.reasoning:
        yield {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}
    if delta.content:
        yield {"content": delta.content}
