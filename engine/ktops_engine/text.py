"""Sentences for people: English by itself, and kept apart from their values for other languages.

The engine speaks English and knows no other language. Whoever prints a sentence may look its
template up in a catalogue and say it differently; who does not care sees an ordinary string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Text(str):
    """An English sentence that remembers the template and the values it was made of."""

    __slots__ = ("template", "values")

    template: str
    values: Mapping[str, object]


def text(template: str, /, **values: object) -> Text:
    """`template` filled in as str.format does, e.g. text("{count} of {total} files", ...).

    `template` is a literal: the translations are looked up by it. A value may be a Text itself.
    """
    sentence = Text(template.format(**values) if values else template)
    sentence.template = template
    sentence.values = values
    return sentence


def joined(parts: Iterable[str], separator: str = ", ") -> Text:
    """One Text of several; each part keeps its own template."""
    values = {f"part{index}": part for index, part in enumerate(parts)}
    return text(separator.join(f"{{{name}}}" for name in values), **values)


def translate(sentence: str, catalogue: Mapping[str, str]) -> str:
    """`sentence` by the templates of `catalogue`; what it does not hold stays English."""
    if not isinstance(sentence, Text):
        return catalogue.get(sentence, sentence)
    template = catalogue.get(sentence.template, sentence.template)
    if not sentence.values:
        return template
    values = {
        name: translate(value, catalogue) if isinstance(value, Text) else value
        for name, value in sentence.values.items()
    }
    return template.format(**values)
