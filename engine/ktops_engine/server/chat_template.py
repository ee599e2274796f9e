"""Renders a conversation with the model's own Jinja template, which is not to be trusted."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ktops_engine.server.errors import ApiError, bad_request
from ktops_engine.server.messages import Message
from ktops_engine.tokenizer import Tokenizer

MAX_BITS = 4096
RESERVED = frozenset({"messages", "tools", "bos_token", "eos_token", "add_generation_prompt"})


class TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which one operator cannot make a huge value, either."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, max_chars: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self._max_chars = max_chars
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "%" and isinstance(left, str):
            raise TemplateRefusal("the % operator on strings is not allowed")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if hasattr(value, "__len__") and len(value) * times > self._max_chars:
                    raise TemplateRefusal("it repeats a value too often")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits * right if operator == "**" else bits + right.bit_length()
            if bits > MAX_BITS:
                raise TemplateRefusal("it computes a huge number")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """One model's template. `source` None: the model has none.

    `max_chars` bounds what one rendering may produce.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, max_chars: int) -> None:
        self._source = source
        self._max_chars = max_chars
        self._tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}

    def render(self, messages: Sequence[Message], variables: Mapping[str, object]) -> str:
        """The prompt's text, ending where the assistant is to go on.

        `variables` are further names for the template (a request's chat_template_kwargs). Raises
        ApiError 400 when the template fails, refuses the messages or writes without end.
        """
        if taken := sorted(RESERVED & variables.keys()):
            raise bad_request(
                f"chat_template_kwargs may not set {', '.join(taken)}.",
                param="chat_template_kwargs",
            )
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                **variables,
                **self._tokens,
                messages=messages,
                tools=None,
                add_generation_prompt=True,
            ):
                size += len(piece)
                if size > self._max_chars:
                    raise TemplateRefusal(f"it writes more than {self._max_chars} characters")
                pieces.append(piece)
        except ApiError:
            raise
        except TemplateRefusal as error:
            raise _failed(f"The chat template refuses these messages: {error}.") from error
        except Exception as error:
            raise _failed(
                f"The chat template fails on these messages: {type(error).__name__}: {error}."
            ) from error
        return "".join(pieces)

    @cached_property
    def _template(self) -> jinja2.Template:
        if self._source is None:
            raise _failed(
                "This model has no chat template. Use /v1/completions, or start the server with "
                "a model folder that has one (--model-path)."
            )
        return _Environment(self._max_chars).from_string(self._source)


def _failed(message: str) -> ApiError:
    return bad_request(message[:1000], param="messages", code="chat_template_error")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message).rstrip("."))


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML, which a prompt must not be."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
