"""Log probabilities as the two OpenAI routes show them."""

from __future__ import annotations

from collections.abc import Sequence

from ktops_engine.tokenizer import Tokenizer
from ktops_engine.types import TokenLogprobs

MAX_TOP_LOGPROBS = 20
MIN_LOGPROB = -9999.0  # JSON has no infinities; vLLM's number for an impossible token

Entry = tuple[int, TokenLogprobs]


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict[str, object]:
    """The `logprobs` of a chat choice: one entry for each sampled token, in order."""
    content = [
        _token(tokenizer, token_id, logprobs.logprob)
        | {"top_logprobs": [_token(tokenizer, *pair) for pair in logprobs.top]}
        for token_id, logprobs in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, entries: Sequence[Entry], text_offset: int
) -> tuple[dict[str, object], int]:
    """The `logprobs` of a text completion, and the offset at which the next entries go on.

    `text_offset` counts characters of the tokens' own texts.
    """
    tokens: list[str] = []
    offsets: list[int] = []
    for token_id, _ in entries:
        text = _text(tokenizer.token_bytes(token_id))
        tokens.append(text)
        offsets.append(text_offset)
        text_offset += len(text)
    body: dict[str, object] = {
        "tokens": tokens,
        "token_logprobs": [_finite(logprobs.logprob) for _, logprobs in entries],
        "top_logprobs": [
            {_text(tokenizer.token_bytes(top)): _finite(value) for top, value in logprobs.top}
            for _, logprobs in entries
        ],
        "text_offset": offsets,
    }
    return body, text_offset


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, object]:
    data = tokenizer.token_bytes(token_id)
    return {"token": _text(data), "logprob": _finite(logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
