"""From token ids to text a client may see: whole characters, no stop strings, reasoning apart."""

from __future__ import annotations

from collections.abc import Sequence

from ktops_engine.server.reasoning import THINK_CLOSE, THINK_OPEN, Delta, ReasoningSplit
from ktops_engine.server.stop_strings import StopStrings
from ktops_engine.tokenizer import IncrementalDecoder, Tokenizer


class TextStream:
    """The text of one answer as it grows.

    `stop` strings apply to the raw text, reasoning included, once `min_tokens` tokens are out.
    `split` None means that all text is content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        split: ReasoningSplit | None = None,
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        # A vocabulary may mark its tags as special tokens, which decoding leaves out.
        self._tags = {
            tokenizer.token_id(tag): tag for tag in (THINK_OPEN, THINK_CLOSE) if split is not None
        }
        self._stops = StopStrings(stop)
        self._min_tokens = min_tokens
        self._split = split
        self._num_tokens = 0
        self._num_reasoning_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stops.matched is not None

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens up to the one that closed the reasoning, tags included."""
        return self._num_reasoning_tokens

    def push(self, token_id: int) -> Delta:
        """What this token makes certain; nothing more may be pushed once `stopped`."""
        self._num_tokens += 1
        tag = self._tags.get(token_id)
        text = self._decoder.push(token_id) if tag is None else self._decoder.flush() + tag
        was_reasoning = self._split is not None and self._split.in_reasoning
        if self._num_tokens > self._min_tokens:
            delta = self._take(self._stops.push(text))
            if self.stopped:
                delta += self._finish_split()
        else:
            delta = self._take(text)
        if was_reasoning or delta.reasoning or (self._split and self._split.in_reasoning):
            self._num_reasoning_tokens = self._num_tokens
        return delta

    def finish(self) -> Delta:
        """The rest, when the tokens end. Half a character becomes U+FFFD."""
        delta = self._take(self._stops.push(self._decoder.flush()))
        if not self.stopped:
            delta += self._take(self._stops.finish())
        return delta + self._finish_split()

    def _take(self, text: str) -> Delta:
        return Delta(content=text) if self._split is None else self._split.push(text)

    def _finish_split(self) -> Delta:
        return Delta() if self._split is None else self._split.finish()
