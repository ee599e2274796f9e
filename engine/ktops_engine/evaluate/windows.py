"""A text as windows of tokens, each of which the model reads for itself.

Every token of the text is predicted once, from those before it in its window. A window begins with
the begin-of-sequence token; where a model has none, with the last token of the window before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops_engine.tokenizer import Tokenizer

DEFAULT_WINDOW = 512
MIN_WINDOW = 2
# 15 to 20 million tokens: days of computing for a large model. Weights given by mistake are larger.
MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True)
class TextFile:
    """A text and the SHA-256 of its bytes, in hexadecimal."""

    path: Path
    content: str
    sha256: str


@dataclass(frozen=True)
class Window:
    """What the model reads, and the token that follows each of these."""

    inputs: list[int]
    targets: list[int]


@dataclass(frozen=True)
class TokenWindows:
    """The tokens of a text, cut into windows of `size` tokens; the last one may be shorter.

    token_ids: what comes before the first target, then the targets. `bos` begins every window;
    None: the token before does.
    """

    token_ids: list[int]
    bos: int | None
    size: int

    @property
    def num_targets(self) -> int:
        return len(self.token_ids) - 1

    @property
    def sha256(self) -> str:
        """Of the token ids as 32-bit little-endian numbers, in hexadecimal."""
        return hashlib.sha256(np.asarray(self.token_ids, dtype="<u4").tobytes()).hexdigest()

    @property
    def num_windows(self) -> int:
        return -(-self.num_targets // self.size)

    def __iter__(self) -> Iterator[Window]:
        ids = self.token_ids
        for start in range(0, self.num_targets, self.size):
            end = min(start + self.size, self.num_targets)
            inputs = ids[start:end]
            if self.bos is not None:
                inputs[0] = self.bos
            yield Window(inputs, ids[start + 1 : end + 1])


def read_text(path: Path) -> TextFile:
    """Read a text whole. Raises KtopsError "text-not-usable"."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if len(data) > MAX_TEXT_BYTES:
        raise _unusable(path, text("more than {count} MiB", count=MAX_TEXT_BYTES >> 20))
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unusable(path, text("byte {at} is not UTF-8", at=error.start)) from error
    return TextFile(path, content, hashlib.sha256(data).hexdigest())


def cut_text(
    source: TextFile, tokenizer: Tokenizer, *, size: int, max_tokens: int | None = None
) -> TokenWindows:
    """The windows of a text, of its first `max_tokens` tokens if given.

    Raises KtopsError "text-not-usable" for one with nothing to predict, and "invalid-max-tokens"
    (status 2).
    """
    if max_tokens is not None and max_tokens < 1:
        raise KtopsError(
            "invalid-max-tokens",
            text("--max-tokens {asked}: at least one token is needed", asked=max_tokens),
            f"--max-tokens {DEFAULT_WINDOW}",
            exit_status=EXIT_USAGE,
        )
    ids = tokenizer.encode(source.content)
    bos = tokenizer.bos_token_id
    # Chat templates write it themselves, so a tokenizer that adds none says nothing of the model.
    if bos is not None and ids[:1] != [bos]:
        ids.insert(0, bos)
    if len(ids) < 2:
        raise _unusable(source.path, text("it has no token to predict"))
    return TokenWindows(ids if max_tokens is None else ids[: max_tokens + 1], bos, size)


def choose_window(asked: int | None, max_positions: int) -> int:
    """Tokens of a window for a model that spans `max_positions` tokens.

    Raises KtopsError "invalid-window" (status 2).
    """
    if asked is None:
        return min(DEFAULT_WINDOW, max_positions)
    if not MIN_WINDOW <= asked <= max_positions:
        raise KtopsError(
            "invalid-window",
            text(
                "--window {asked}: this model takes {low} to {high} tokens",
                asked=asked,
                low=MIN_WINDOW,
                high=max_positions,
            ),
            f"--window {min(DEFAULT_WINDOW, max_positions)}",
            exit_status=EXIT_USAGE,
        )
    return asked


def _unusable(path: Path, reason: str) -> KtopsError:
    return KtopsError(
        "text-not-usable",
        text("{path} is no text to evaluate: {reason}", path=path, reason=reason),
        text("give a text file in UTF-8 of at most {count} MiB", count=MAX_TEXT_BYTES >> 20),
        exit_status=EXIT_USAGE,
    )
