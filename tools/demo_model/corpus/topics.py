"""Turns from the TOML files: identity, small talk, ktops, terms, and what is out of scope."""

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from demo_model.corpus.text import expand, favour_first, first_sentence, invented, vary
from demo_model.corpus.turn import Turn, other_language

HERE = Path(__file__).parent
EN_TERM = (
    "what (is|are|does) {t}( mean| stand for|)",
    "what is {t}",
    "what is {t}",
    "what's {t}",
    "(please |)explain {t}( to me| briefly| in simple words| in one sentence|)",
    "(please |)(define|describe) {t}",
    "tell me (about|something about|more about|what you know about) {t}",
    "(can|could) you (please |)(explain|describe|define|tell me about) {t}",
    "(can|could) you tell me what {t} (is|are|means)",
    "what do you know about {t}",
    "what does {t} (mean|do)",
    "what is (meant by|the meaning of|the purpose of) {t}",
    "what is {t} (good for|used for|for)",
    "how does {t} work",
    "(i do not|i don't) (know|understand) (what |){t}( is| means|)",
    "{t}",
    "why (do we need|is there|use) {t}",
    "give me (a definition|an explanation) of {t}",
    "do you know (what |){t}( is|)",
    "meaning of {t}",
    "i (heard|read) about {t}, what is (it|that)",
    "{t}: what is (it|that)",
)
ZH_TERM = (
    "什么是 {t}",
    "什么是 {t}",
    "{t} 是什么",
    "{t} 是什么(意思|东西|概念|)",
    "(请|)(解释|介绍|说明|讲解)一下 {t}",
    "(请|帮我|)(解释|介绍)(下|) {t}",
    "(讲讲|说说|谈谈|聊聊) {t}",
    "{t} (有什么用|是干什么的|是做什么的|的作用是什么|的含义是什么|怎么用)",
    "{t} (的原理是什么|是怎么工作的|是如何工作的)",
    "你(知道|了解|懂) {t} 吗",
    "我(不懂|不知道|不明白) {t}( 是什么|)",
    "{t}",
    "(能|可以)(解释|介绍)一下 {t} 吗",
    "为什么(需要|要用) {t}",
    "(用一句话|简单)(解释|介绍)(一下|) {t}",
    "(给我|)介绍一下什么是 {t}",
    "告诉我 {t} 是什么",
    "听说过 {t} 吗",
    "{t} 指的是什么",
)
EN_COMPARE = (
    "what is the difference between {a} and {b}",
    "compare {a} (and|with) {b}",
    "{a} (vs|versus|or) {b}",
    "how (do|does) {a} and {b} differ",
)
ZH_COMPARE = (
    "{a} 和 {b} 有什么(区别|不同|差别)",
    "{a} 和 {b} 的区别(是什么|)",
    "比较一下 {a} 和 {b}",
)


@lru_cache
def load(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


@lru_cache
def entries() -> tuple[tuple[dict[str, Any], ...], tuple[float, ...]]:
    """All entries with written questions, and how often each is asked."""
    found = [e for name in ("identity", "smalltalk", "faq") for e in load(name)["entry"]]
    return tuple(found), tuple(e.get("weight", 1) for e in found)


@lru_cache
def terms() -> tuple[tuple[dict[str, Any], ...], tuple[float, ...]]:
    found = load("terms")["term"]
    return tuple(found), tuple(t.get("weight", 1) for t in found)


def entry_turn(rng: Random, lang: str, entry_id: str | None = None) -> Turn:
    """A turn of identity, small talk or ktops' use."""
    found, weights = entries()
    if entry_id:
        entry = next(e for e in found if e["id"] == entry_id)
    else:
        entry = rng.choices(found, weights)[0]
    question = vary(rng, expand(rng, rng.choice(entry[f"{lang}_q"])), lang)
    answer = favour_first(rng, entry[lang])
    other = entry[other_language(lang)][0]
    return Turn(lang, question, rng.choice(entry[f"{lang}_think"]), answer, other)


def term_turn(rng: Random, lang: str) -> Turn:
    """A turn that asks for the meaning of a term, or for the difference of two."""
    found, weights = terms()
    if rng.random() < 0.06:
        return _compare(rng, lang, *rng.sample(found, 2))
    term = rng.choices(found, weights)[0]
    name = rng.choice(term[f"{lang}_names"])
    pattern = rng.choice(EN_TERM if lang == "en" else ZH_TERM)
    if lang == "zh" and pattern == "{t}" and name.isascii():
        pattern = "{t} 是什么"  # a bare Latin name is taken for English
    question = vary(rng, _spaced(expand(rng, pattern).replace("{t}", name)), lang)
    title = term[f"{lang}_names"][0]
    if lang == "en":
        think = f"The user asks about {title}. I know this term and explain it briefly."
    else:
        think = f"用户问的是{_pad(title)}。我了解这个概念，简短地解释。"
    return Turn(lang, question, think, term[lang], term[other_language(lang)])


def _compare(rng: Random, lang: str, a: dict[str, Any], b: dict[str, Any]) -> Turn:
    names = rng.choice(a[f"{lang}_names"]), rng.choice(b[f"{lang}_names"])
    pattern = expand(rng, rng.choice(EN_COMPARE if lang == "en" else ZH_COMPARE))
    question = _spaced(pattern.replace("{a}", names[0]).replace("{b}", names[1]))
    titles = a[f"{lang}_names"][0], b[f"{lang}_names"][0]
    if lang == "en":
        think = f"The user compares {titles[0]} and {titles[1]}. I describe both."
    else:
        think = f"用户想比较{_pad(titles[0])}和{_pad(titles[1])}。我分别说明。"
    parts = {x: [first_sentence(t[x], x) for t in (a, b)] for x in ("en", "zh")}
    answers = {x: "\n\n".join(p) for x, p in parts.items()}
    return Turn(
        lang, vary(rng, question, lang), think, answers[lang], answers[other_language(lang)]
    )


def unknown_turn(rng: Random, lang: str) -> Turn:
    """A question outside of what the model knows."""
    data = load("unknown")
    pattern = rng.choice(data[f"{lang}_q"])
    slots = data["slots"][lang]
    novel = rng.random() < 0.3  # a name never heard of
    filled = re.sub(
        r"\{(\w+)\}", lambda m: _novel(rng, lang) if novel else rng.choice(slots[m[1]]), pattern
    )
    question = vary(rng, expand(rng, filled), lang)
    answer, other = favour_first(rng, data[lang]), data[other_language(lang)][0]
    return Turn(lang, question, rng.choice(data[f"{lang}_think"]), answer, other)


def _novel(rng: Random, lang: str) -> str:
    """A word that nobody taught: invented in English, two or three random characters in Chinese."""
    if lang == "en":
        word = invented(rng, 2, 4)
        return word.capitalize() if rng.random() < 0.5 else word
    return "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(rng.randrange(2, 4)))


def _spaced(text: str) -> str:
    """Chinese typography: a space only between Chinese and Latin."""
    return re.sub(r"(?<=[一-鿿，：]) (?=[一-鿿])", "", text)


def _pad(name: str) -> str:
    left = " " if re.match(r"[\w`-]", name, re.ASCII) else ""
    right = " " if re.search(r"[\w`]$", name, re.ASCII) else ""
    return f"{left}{name}{right}"
