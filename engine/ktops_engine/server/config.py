"""What the server is told once, at start."""

from __future__ import annotations

from dataclasses import dataclass, field

from ktops_engine.types import SamplingParams

MIB = 1 << 20


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server.

    `model_id` is the name clients use; `root` is where the weights come from (shown in the model
    list; None: the same as `model_id`). `api_key` None means that no key is asked for.
    `max_new_tokens` is the length of an answer when the request names none (None: up to the
    context); a request may ask for more. `sampling` holds the defaults of temperature, top_p,
    top_k, min_p and repetition_penalty, from generation_config.json where the model has one.
    `chat_template` replaces the model's own template. `keep_alive_s` is the longest silence of a
    stream, in seconds. `max_body_bytes` bounds a request body.
    """

    model_id: str
    root: str | None = None
    api_key: str | None = None
    max_new_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    chat_template: str | None = None
    keep_alive_s: float = 5.0
    max_body_bytes: int = 16 * MIB
