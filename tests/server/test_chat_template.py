"""The model's template: what it may use, and what it may not do."""

from __future__ import annotations

import pytest

from ktops_engine.server.chat_template import ChatTemplate
from ktops_engine.server.errors import ApiError

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def render(tokenizer):
    def render(source, messages=MESSAGES, max_chars=1000, **variables):
        return ChatTemplate(source, tokenizer, max_chars).render(messages, variables)

    return render


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<｜begin▁of▁sentence｜>|<｜end▁of▁sentence｜>"),
        ("{% if add_generation_prompt %}\n  go\n{% endif %}", "  go\n"),
        ("  {% for m in messages %}{{ m.content }}{% endfor %}", "hi"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 7 %}{{ ns.a % 4 }}", "3"),
        ("{{ 'ab' * 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}", "ababab68"),
        ("{{ tools is none }}{{ thinking }}", "TrueTrue"),
    ],
)
def test_templates_have_what_hugging_face_gives_them(render, source, text):
    assert render(source, thinking=True) == text


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[5].content.x }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}{{ ().__class__.__base__.__subclasses__() }}", "Security"),
        ("{{ messages.append(1) }}", "Security"),
        ("{% for i in range(9999) %}xxxxx{% endfor %}", "more than 1000 characters"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{{ 'x' * 10**12 }}", "repeats"),
        ("{{ 10**12 * 'x' }}", "repeats"),
        ("{{ [0] * 10**12 }}", "repeats"),
        ("{{ 9 ** 9999 }}", "huge number"),
        ("{{ (9 ** 999) * (9 ** 999) }}", "huge number"),
        ("{{ '%99999999d' % 1 }}", "not allowed"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_or_attacks_is_a_bad_request(render, source, why):
    with pytest.raises(ApiError, match=why) as caught:
        render(source)
    assert (caught.value.status, caught.value.code) == (400, "chat_template_error")


def test_a_model_without_a_template_says_what_to_use(render):
    with pytest.raises(ApiError, match="/v1/completions"):
        render(None)


def test_the_configured_template_replaces_the_models(serve, new_engine, tokenizer):
    engine = new_engine()
    with serve(engine, chat_template="{{ messages[0].content }}!") as live:
        live.chat("hi")
    assert tokenizer.decode(engine.requests[0].prompt_token_ids) == "hi!"


def test_a_template_that_writes_nothing_is_a_bad_request(serve, new_engine):
    with serve(new_engine(), chat_template="{# nothing #}") as live:
        assert live.chat().json()["error"]["code"] == "empty_prompt"
