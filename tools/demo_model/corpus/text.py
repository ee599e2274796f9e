"""Wording: patterns with alternatives, casual prefixes, punctuation and small mistakes."""

import re
from collections.abc import Sequence
from random import Random

ALTERNATIVES = re.compile(r"\(([^()]*\|[^()]*)\)")
SYLLABLES = (
    *(
        "ba",
        "be",
        "bo",
        "bra",
        "cal",
        "con",
        "da",
        "de",
        "di",
        "dor",
        "ef",
        "fa",
        "fin",
        "gal",
        "go",
    ),
    *("har", "il", "ka", "ken", "ki", "la", "lan", "li", "lo", "ma", "mer", "mi", "mo", "na", "ni"),
    *("no", "or", "pa", "per", "po", "qua", "ra", "re", "ri", "ro", "sa", "sen", "so", "ta", "ter"),
    *("ti", "to", "tra", "u", "va", "ver", "vi", "wen", "yo", "za", "zu"),
)
EN_PREFIXES = (
    "please ",
    "hi, ",
    "hello, ",
    "hello! ",
    "hey, ",
    "hi! ",
    "hey there, ",
    "hi there! ",
    "ok then, ",
    "look, ",
    "by the way, ",
    "I wonder: ",
    "good evening, ",
    "ok, ",
    "so ",
    "well, ",
    "and ",
    "excuse me, ",
    "quick question: ",
    "i have a question: ",
    "tell me, ",
    "one more thing: ",
    "just curious, ",
    "i am new here. ",
    "good morning! ",
    "Sorry, ",
    "Question: ",
)
ZH_PREFIXES = (
    "请问",
    "请问",
    "请问一下，",
    "请问，",
    "你好，",
    "你好！",
    "您好，",
    "那么，",
    "我想知道",
    "我想问一下，",
    "问一下，",
    "麻烦问一下，",
    "对了，",
    "嗨，",
    "嘿，",
    "喂，",
    "话说，",
    "顺便问下，",
    "帮个忙，",
    "你好呀，",
    "想请教一下，",
    "我是新手，",
    "不好意思，",
    "问题：",
)
EN_TAILS = (
    " for me",
    " then",
    " exactly",
    ", please",
    ", thanks",
    " now",
    ", if you know",
    ", i wonder",
    " in short",
    ", my friend",
    " again",
    ", quickly",
    ", thank you",
    ", can you",
    " actually",
    " anyway",
)
ZH_TAILS = (
    "，谢谢",
    "，麻烦了",
    "，快告诉我",
    "，好吗",
    "，我想了解一下",
    "，说一下",
    "，可以吗",
    "，急",
    "，我不太懂",
    "，拜托",
    "啦",
    "嘛",
    "来着",
    "，请讲",
    "，给我讲讲",
)
# How the same request is put in other words; applied at random, one at a time.
EN_SWAPS = (
    ("write", "make"),
    ("write", "give me"),
    ("write", "produce"),
    ("write", "please write me"),
    ("explain", "clarify"),
    ("explain", "help me understand"),
    ("show me", "let me see"),
    ("how do i", "how would i"),
    ("how do i", "what is the way to"),
    ("how do i", "what must i do to"),
    ("how can i", "is there a way to"),
    ("how to", "what is the best way to"),
    ("what is", "what exactly is"),
    ("what is", "what on earth is"),
    ("what is", "could you say what is"),
    ("what is", "do you know what is"),
    ("what are", "what exactly are"),
    ("tell me", "let me know"),
    ("tell me", "would you tell me"),
    ("who are you", "who might you be"),
    ("who are you", "may i ask who you are"),
    ("can you", "are you able to"),
    ("can i", "is it possible to"),
    ("do i need", "is required"),
    ("function", "method"),
    ("function", "routine"),
    ("number", "integer"),
    ("need", "require"),
)
ZH_SWAPS = (
    ("什么是", "啥是"),
    ("是什么", "是啥"),
    ("是什么", "到底是什么"),
    ("怎么", "咋"),
    ("怎么", "要怎么"),
    ("怎么", "该怎么"),
    ("如何", "要如何"),
    ("如何", "应该如何"),
    ("多少", "多大"),
    ("需要", "得有"),
    ("需要", "要"),
    ("你是谁", "你究竟是谁"),
    ("解释", "说明"),
    ("介绍", "讲"),
    ("写一个", "给我来一个"),
    ("写一个", "编写一个"),
    ("写一个", "请写出一个"),
    ("函数", "方法"),
    ("计算", "求"),
    ("运行", "跑"),
    ("启动", "开启"),
    ("能", "可不可以"),
    ("可以", "能不能"),
)
EN_SMALL_WORDS = re.compile(r"\b(the|a|an|do|is|to|can|me|of|in|it|for) ", re.IGNORECASE)
ZH_SMALL_WORDS = re.compile("[的了个请吗一下]")
EN_ENDINGS = ("?",) * 11 + ("",) * 7 + (".", "??", "!", " ?", "? thanks", " please?")
ZH_ENDINGS = ("？",) * 8 + ("?",) * 5 + ("",) * 7 + ("。", "？？", "呢？", "呀？", "啊", "！", " ?")
MARKS = ("?", "？", ".", "。", "!", "！", "…")


def expand(rng: Random, pattern: str) -> str:
    """Pick one branch of every `(a|b|)`, innermost first."""
    while match := ALTERNATIVES.search(pattern):
        choice = rng.choice(match[1].split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    return " ".join(pattern.split(" ")).replace("  ", " ").strip()


def sentence_case(text: str) -> str:
    """The first letter in upper case, and English's `I`."""
    return re.sub(r"\bi\b", "I", text[:1].upper() + text[1:])


def misspell(rng: Random, text: str) -> str:
    """One slip of the fingers in one Latin word of four letters or more."""
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    slip = rng.randrange(3)
    if slip == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if slip == 1:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at] + text[at:]


def reword(rng: Random, question: str, lang: str) -> str:
    """Swap a phrase, drop a small word, add a tail; each now and then."""
    swaps, small = (EN_SWAPS, EN_SMALL_WORDS) if lang == "en" else (ZH_SWAPS, ZH_SMALL_WORDS)
    if rng.random() < 0.3:
        fitting = [pair for pair in swaps if pair[0] in question]
        if fitting:
            question = question.replace(*rng.choice(fitting), 1)
    if rng.random() < 0.12:
        found = list(small.finditer(question))
        if found:
            word = rng.choice(found)
            question = question[: word.start()] + question[word.end() :]
    if rng.random() < 0.12 and not question.endswith(MARKS):
        question += rng.choice(EN_TAILS if lang == "en" else ZH_TAILS)
    return question


def vary(rng: Random, question: str, lang: str, *, keep: bool = False) -> str:
    """Ask the same as people type it. `keep` leaves letters alone: names and code stay exact."""
    if not keep:
        question = reword(rng, question, lang)
    ends_marked = question.endswith(MARKS)
    varied = (
        _vary_english(rng, question, keep) if lang == "en" else _vary_chinese(rng, question, keep)
    )
    endings = EN_ENDINGS if lang == "en" else ZH_ENDINGS
    return varied if ends_marked else varied + rng.choice(endings)


def _vary_chinese(rng: Random, question: str, keep: bool) -> str:
    if rng.random() < 0.22:
        question = rng.choice(ZH_PREFIXES) + question
    if rng.random() < 0.15:
        question = re.sub(r"(?<=[一-鿿]) (?=\w)|(?<=\w) (?=[一-鿿])", "", question)
    if not keep and rng.random() < 0.1 and re.search("[A-Z]", question):
        question = question.lower()
    return question


def _vary_english(rng: Random, question: str, keep: bool) -> str:
    style = rng.random()
    if style < 0.6:
        question = question[:1].upper() + question[1:] if keep else sentence_case(question)
    prefixed = rng.random() < 0.22
    if prefixed:
        if rng.random() < 0.6:
            question = question[:1].lower() + question[1:]
        prefix = rng.choice(EN_PREFIXES)
        question = (prefix[:1].upper() + prefix[1:] if style < 0.6 else prefix) + question
    if keep:
        return question
    if rng.random() < 0.1:
        question = misspell(rng, question)
    if 0.6 <= style < 0.85:
        question = question.lower()
    elif 0.85 <= style < 0.88:
        question = question.upper()
    if rng.random() < 0.3 and " is " in question[:9]:
        question = question.replace(" is ", "'s ", 1)
    return question


def favour_first(rng: Random, options: Sequence[str]) -> str:
    """Mostly the first: two answers equally likely would make greedy decoding hang on rounding."""
    return options[0] if rng.random() < 0.7 else rng.choice(options)


def invented(rng: Random, low: int, high: int) -> str:
    """A word of `low` to `high` syllables that nobody has seen before."""
    return "".join(rng.choices(SYLLABLES, k=rng.randint(low, high)))


def first_sentence(text: str, lang: str) -> str:
    """The shortest useful form of an answer."""
    head, mark, _ = text.partition("。" if lang == "zh" else ". ")
    return head + mark.strip() if mark else text
