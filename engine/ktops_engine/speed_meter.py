"""How fast an engine answered while it worked: decode with one request, and prompts by length."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ktops_engine.types import Batch, BatchItem, Sampled

# The first steps of a process find caches cold and buffers small.
WARM_UP_STEPS = 8
MIN_STEPS = 32  # fewer say nothing
MAX_STEPS = 1024  # what counts are the last ones
MIN_PROMPT_TOKENS = 512
MAX_PROMPTS = 32  # of a class of lengths

_Row = tuple[float, int, int]  # seconds, tokens computed, length


@dataclass(frozen=True)
class Figure:
    """Tokens a second that were measured: the median of `num_tokens` decoded tokens, or of the
    prompts that have so many together.

    `length`: the median of the tokens of such a prompt; while decoding, of those before the token.
    """

    tokens_per_s: float
    num_tokens: int
    length: int


@dataclass(frozen=True)
class Speeds:
    """What was measured so far: None and nothing where there was too little. `prompts` are by
    the class of their length (`prompt_class`)."""

    decode: Figure | None = None
    prompts: Mapping[int, Figure] = field(default_factory=lambda: MappingProxyType({}))


def prompt_class(num_tokens: int) -> int:
    """Prompts of one class are about as fast by the token: those from a power of two to the next,
    which begins it. 700 -> 512."""
    return 1 << (num_tokens.bit_length() - 1)


class SpeedMeter:
    """Takes the time of every step. Steps that failed or that two requests share count for nothing,
    and so do the first ones. Not for several threads at a time."""

    def __init__(self) -> None:
        self._num_decoded = 0
        self._decode: deque[_Row] = deque(maxlen=MAX_STEPS)
        self._prompts: dict[int, deque[_Row]] = {}
        self._is_warm = False  # whether a long prompt was computed
        self._prompt_id = ""  # whose chunks are being computed, "": none that will count
        self._prompt_seconds = 0.0

    def add(self, batch: Batch, sampled: Sequence[Sampled], seconds: float) -> None:
        """Count one step that took `seconds`."""
        item = batch.items[0]
        if len(batch.items) > 1 or any(answer.token_id is None for answer in sampled):
            self._prompt_id = ""
        elif item.start >= len(item.request.prompt_token_ids):
            self._add_decode(item, seconds)
        else:
            self._add_chunk(item, seconds)

    def speeds(self) -> Speeds:
        """What was measured so far."""
        decode = _figure(self._decode) if len(self._decode) >= MIN_STEPS else None
        prompts = {length: _figure(rows) for length, rows in sorted(self._prompts.items())}
        return Speeds(decode, MappingProxyType(prompts))

    def _add_decode(self, item: BatchItem, seconds: float) -> None:
        self._num_decoded += 1
        if self._num_decoded > WARM_UP_STEPS:
            self._decode.append((seconds, 1, item.start))

    def _add_chunk(self, item: BatchItem, seconds: float) -> None:
        if item.start == 0:
            self._prompt_id, self._prompt_seconds = item.request.id, 0.0
        if item.request.id != self._prompt_id:
            return
        self._prompt_seconds += seconds
        num_tokens = item.start + item.num_tokens
        if not item.samples or num_tokens < MIN_PROMPT_TOKENS:
            return
        if self._is_warm:
            rows = self._prompts.setdefault(prompt_class(num_tokens), deque(maxlen=MAX_PROMPTS))
            rows.append((self._prompt_seconds, num_tokens, num_tokens))
        self._is_warm = True


def _figure(rows: Sequence[_Row]) -> Figure:
    """The medians of rows; one at least."""
    return Figure(
        tokens_per_s=statistics.median(tokens / seconds for seconds, tokens, _ in rows),
        num_tokens=sum(tokens for _, tokens, _ in rows),
        length=int(statistics.median(length for _, _, length in rows)),
    )
