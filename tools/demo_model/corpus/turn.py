"""One question with its answer, the unit that every source of the corpus makes."""

from dataclasses import dataclass

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Turn:
    """`think` and `answer` are what the model must write; `other` is the answer in the other
    language (empty when there is none); `follow_ups` are turns that only make sense after it."""

    lang: str
    question: str
    think: str
    answer: str
    other: str = ""
    follow_ups: tuple["Turn", ...] = ()


def other_language(lang: str) -> str:
    return "zh" if lang == "en" else "en"
