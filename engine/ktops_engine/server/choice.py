"""One choice of an answer: its text, its counts and why it ended."""

from __future__ import annotations

from ktops_engine.server.reasoning import Delta
from ktops_engine.server.text_stream import TextStream
from ktops_engine.types import FinishReason, StepOutput, TokenLogprobs


class Choice:
    """Fed with the engine's outputs, one by one, until `finish_reason` is set.

    `num_tokens` counts every sampled token, the one that ended the text included, as vLLM counts
    completion_tokens.
    """

    def __init__(self, index: int, text: TextStream) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: str | None = None
        self._text = text
        self._logprobs: list[tuple[int, TokenLogprobs]] = []

    @property
    def num_reasoning_tokens(self) -> int:
        return self._text.num_reasoning_tokens

    def advance(self, output: StepOutput) -> Delta:
        """The text that this step adds."""
        delta = Delta()
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        if output.token_id is not None:
            self.num_tokens += 1
            if output.logprobs is not None:
                self._logprobs.append((output.token_id, output.logprobs))
            if output.finish_reason is not FinishReason.STOP:  # the stop token has no text
                delta = self._text.push(output.token_id)
        if output.finish_reason is not None and not self._text.stopped:
            delta += self._text.finish()
            self.finish_reason = output.finish_reason.value
        if self._text.stopped:
            self.finish_reason = FinishReason.STOP.value
        return delta

    def take_logprobs(self) -> list[tuple[int, TokenLogprobs]]:
        """The tokens sampled since the last call, with their log probabilities."""
        taken, self._logprobs = self._logprobs, []
        return taken
