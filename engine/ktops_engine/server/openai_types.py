"""The requests of OpenAI's API, as far as this server reads them.

Null means "not given". Unknown fields are kept in `model_extra`. What may be a string or a list
(`messages`, `prompt`, `stop`) is checked by the code that uses it, which can say more than a
schema can.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from ktops_engine.server.errors import ApiError, bad_request
from ktops_engine.server.logprobs import MAX_TOP_LOGPROBS

MAX_CHOICES = 64  # what an idle engine's queue can hold
MAX_INT64 = 2**63 - 1


def _whole(value: object) -> object:
    """Some clients know only floating-point numbers: 16.0 is 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[StrictInt, BeforeValidator(_whole)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(_Model):
    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None


class GenerationRequest(_Model):
    """What chat and text completions share."""

    model: str | None = None
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, le=MAX_INT64)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Any = None
    seed: Annotated[Integer, Field(ge=-MAX_INT64, le=MAX_INT64)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    ignore_eos: Flag | None = None
    min_tokens: Annotated[Integer, Field(ge=0)] | None = None
    stop_token_ids: list[Annotated[Integer, Field(ge=0)]] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None


class ChatRequest(GenerationRequest):
    messages: Any = None
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: Flag | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class CompletionRequest(GenerationRequest):
    prompt: Any = None
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: Flag | None = None
    suffix: str | None = None
    best_of: Annotated[Integer, Field(ge=1)] | None = None


class TokenizeRequest(_Model):
    model: str | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: Flag | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(_Model):
    model: str | None = None
    tokens: list[Annotated[Integer, Field(ge=0)]]


Model = TypeVar("Model", bound=_Model)


def validate(kind: type[Model], body: dict[str, object]) -> Model:
    """Raises ApiError 400 that names the first field at fault."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}"
    param = param.lstrip(".")[:200]
    message = first["msg"].removeprefix("Input should be ")
    if first["type"] == "missing":
        return bad_request(f"{param} is required.", param=param, code="missing_value")
    return bad_request(f"{param} must be {message}.", param=param)
