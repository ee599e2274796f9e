"""Every sentence for a person is a text(...), and every text(...) has Chinese words."""

from __future__ import annotations

import ast
import string
import tomllib
from collections.abc import Iterable

import pytest
from spoken import (
    HINTS,
    ROOT,
    SENTENCES,
    calls,
    finished,
    has_words,
    is_command,
    origins,
    templates,
)

from ktops.language import Language, catalogue
from ktops.output import Output
from ktops_engine.errors import KtopsError
from ktops_engine.text import joined, text, translate


def fields(template: str) -> set[tuple[str, str | None, str | None]]:
    """The values of a template, each with its format and conversion."""
    parts = string.Formatter().parse(template)
    return {(name, form, conversion) for _, name, form, conversion in parts if name is not None}


def listed(lines: Iterable[str]) -> str:
    """A failure's message with every line of it, which pytest would cut short."""
    return "\n".join(["", *sorted(lines)])


def test_every_sentence_has_chinese_words_and_no_translation_is_left_over() -> None:
    chinese = set(catalogue(Language.ZH))
    assert not templates() - chinese, listed(templates() - chinese)
    assert not chinese - templates(), listed(chinese - templates())


def test_no_sentence_stands_twice_in_the_catalogue() -> None:
    topics = (ROOT / "ktops/messages/zh").glob("*.toml")
    everything = [t for topic in topics for t in tomllib.loads(topic.read_text(encoding="utf-8"))]
    assert len(everything) == len(set(everything))


def test_a_translation_uses_the_same_values_in_the_same_form() -> None:
    chinese = catalogue(Language.ZH)
    other = [template for template in chinese if fields(chinese[template]) != fields(template)]
    assert not other, listed(other)


def test_what_is_said_to_people_can_be_translated() -> None:
    """A finished string cannot be looked up: whoever speaks hands on a text(...)."""
    untranslatable = [
        f"{call.place}: {words!r}"
        for call in calls()
        for position, keyword in SENTENCES.get(call.name, ())
        for value in origins(call.argument(position, keyword), call.scope)
        if (words := finished(value)) and has_words(words)
    ]
    assert not untranslatable, listed(untranslatable)


def test_lines_for_people_can_be_translated() -> None:
    """The lines of an answer, where a list of them stands in the call."""
    untranslatable = [
        f"{call.place}: {words!r}"
        for call in calls()
        if call.name == ".result"
        for value in origins(call.argument(None, "human"), call.scope)
        for line in (value.elts if isinstance(value, ast.List | ast.Tuple) else ())
        for element in origins(line, call.scope)
        if (words := finished(element)) and has_words(words) and not is_command(words)
    ]
    assert not untranslatable, listed(untranslatable)


def test_a_hint_with_words_can_be_translated() -> None:
    untranslatable = [
        f"{call.place}: {words!r}"
        for call in calls()
        for position, keyword in HINTS.get(call.name, ())
        for value in origins(call.argument(position, keyword), call.scope)
        if (words := finished(value)) and not is_command(words)
    ]
    assert not untranslatable, listed(untranslatable)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ktops build --force", True),
        ("--max-rate 200MB/s", True),
        ("KTOPS_DEBUG=1 ktops serve", True),
        ("sudo sysctl -w kernel.numa_balancing=0", True),
        ("ls -l 'X'; dmesg | tail", True),
        ("X --help", True),
        ("X -m pip install triton", True),
        ("ktops serve, or ktops chat without --url", False),
        ("ktops models   # shows what is here", False),
        ("ktops serve --port X   (what holds it: ss -ltnp)", False),
        ("try again later", False),
        ("X is broken", False),
        ("Download it again: rm 'X'", False),
    ],
)
def test_a_command_is_told_from_words(words: str, expected: bool) -> None:
    assert is_command(words) is expected


@pytest.mark.parametrize(
    ("finished_string", "expected"),
    [
        ("X (X)", False),
        ("cmake X", False),
        ("CUDA_VISIBLE_DEVICES=X", False),
        ("X cores", True),
        ("on", True),
    ],
)
def test_values_are_told_from_sentences(finished_string: str, expected: bool) -> None:
    assert has_words(finished_string) is expected


def test_words_are_found_behind_names_and_choices() -> None:
    source = "def f(x):\n    why = f'no {x}' if x else text('none')\n    g(why or 'a' + x)"
    (scope,) = ast.parse(source).body
    (call,) = [node for node in ast.walk(scope) if getattr(node, "lineno", 0) == 3][:1]
    found = [finished(value) for value in origins(call.value.args[0], scope)]
    assert found == ["no X", None, "aX"]


def test_an_error_is_said_in_chinese_and_stays_english_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = KtopsError("x", text("error:"), "ktops models")
    Output(language=Language.ZH).error(error)
    assert capsys.readouterr().err == "错误: 错误:\n  解决: ktops models\n"
    assert str(error) == error.message == "error:"


def test_parts_of_a_sentence_are_translated_too() -> None:
    words = {"{n} shards": "{n} 个分片", "whole": "完整"}
    sentence = joined([text("{n} shards", n=2), text("whole"), "x.gguf"])
    assert sentence == "2 shards, whole, x.gguf"
    assert translate(sentence, words) == "2 个分片, 完整, x.gguf"


def test_braces_in_values_are_harmless() -> None:
    words = {"bad {what}": "错误 {what}"}
    assert translate(text("bad {what}", what="{0!r}"), words) == "错误 {0!r}"
