"""Whole conversations: a system prompt now and then, some history, and the turn to learn."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from demo_model.corpus.arithmetic import calculation_turn
from demo_model.corpus.code import function_turn
from demo_model.corpus.memory import memory_turn, person
from demo_model.corpus.numbers import number_turn
from demo_model.corpus.text import expand, first_sentence, vary
from demo_model.corpus.topics import entry_turn, term_turn, unknown_turn
from demo_model.corpus.turn import LANGUAGES, Turn, other_language

SOURCES: tuple[tuple[Callable[[Random, str], Turn], float], ...] = (
    (entry_turn, 0.27),
    (term_turn, 0.16),
    (calculation_turn, 0.22),
    (function_turn, 0.17),
    (unknown_turn, 0.07),
    (number_turn, 0.05),
    (memory_turn, 0.06),
)
SYSTEMS = {
    "en": (
        "You are a helpful assistant.",
        "You are a helpful AI assistant.",
        "You are the demo model of ktops.",
        "Be polite and concise.",
        "You are a friendly assistant. Answer the user's questions.",
        "Answer truthfully. If you do not know, say so.",
        "You are an expert programmer.",
        "Think step by step.",
        "Today is Monday.",
        "The current date is 2025-03-01.",
        "You are a helpful assistant that answers in a friendly tone.",
    ),
    "zh": (
        "你是一个有用的助手。",
        "你是一个乐于助人的人工智能助手。",
        "你是 ktops 的演示模型。",
        "请礼貌而简洁地回答。",
        "你是一位编程专家。",
        "请如实回答，不知道就说不知道。",
        "今天是星期一。",
    ),
}
BRIEF = {
    "en": ("Answer briefly.", "Answer in one sentence.", "Be very brief."),
    "zh": ("请简短回答。", "用一句话回答。"),
}
IN_LANGUAGE = {
    "en": ("Always answer in English.", "Answer in English.", "请用英文回答。"),
    "zh": ("Always answer in Chinese.", "Answer in Chinese.", "请用中文回答。"),
}
THINK_TRANSLATE = {
    "en": "I give the answer in English.",
    "zh": "我用中文回答。",
}


@dataclass(frozen=True)
class Conversation:
    """Earlier turns as (question, answer), then the one whose answer is learned. A `Conversation`
    without turns and with `text` is plain text."""

    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    turn: Turn | None = None
    text: str = ""


def make_conversation(seed: str) -> Conversation:
    """The conversation of this seed, always the same."""
    rng = Random(seed)
    lang = rng.choice(LANGUAGES)
    if rng.random() < 0.03:
        return Conversation(text=_plain(rng, lang))
    if rng.random() < 0.03:
        return _persona(rng, lang)
    turns = [_fresh(rng, lang)]
    for _ in range(rng.choices((0, 1, 2, 3), (62, 22, 11, 5))[0]):
        if rng.random() < 0.12:
            lang = rng.choice(LANGUAGES)
        turns.append(_next(rng, turns[-1], lang))
    system, last = "", turns[-1]
    if rng.random() < 0.2:
        system, last = _system(rng, last)
    history = tuple((t.question, t.answer) for t in turns[:-1])
    return Conversation(system=system, history=history, turn=last)


def _fresh(rng: Random, lang: str) -> Turn:
    makers, weights = zip(*SOURCES, strict=True)
    return rng.choices(makers, weights)[0](rng, lang)


def _next(rng: Random, previous: Turn, lang: str) -> Turn:
    """What is said after `previous`: a follow-up, a new topic, or a request about the answer."""
    kind = rng.random()
    if previous.follow_ups and kind < 0.5:
        return rng.choice(previous.follow_ups)
    if previous.other and kind < 0.25:
        return _translated(rng, previous)
    if kind < 0.3 and len(previous.answer) < 400:
        return _again(rng, previous)
    if kind < 0.34 and previous.other:
        return _shorter(rng, previous)
    if kind < 0.38:
        return entry_turn(rng, lang, "thanks")
    return _fresh(rng, lang)


def _translated(rng: Random, previous: Turn) -> Turn:
    target = other_language(previous.lang)
    asks = {
        "zh": (
            "in Chinese",
            "(and |)in chinese please",
            "(用|请用)中文(说|再说一遍|回答|解释)",
            "中文呢",
            "translate it to chinese",
        ),
        "en": (
            "in English",
            "(and |)in english please",
            "(用|请用)英文(说|再说一遍|回答|解释)",
            "英文呢",
            "say it in english",
        ),
    }
    pattern = expand(rng, rng.choice(asks[target]))
    asked_in = "zh" if any("一" <= c <= "鿿" for c in pattern) else "en"
    question = vary(rng, pattern, asked_in)
    return Turn(target, question, THINK_TRANSLATE[target], previous.other, previous.answer)


def _again(rng: Random, previous: Turn) -> Turn:
    if previous.lang == "en":
        question = expand(rng, "(say|repeat) (that|it) (again|once more|)")
        think = "The user wants to read it again."
    else:
        question = expand(rng, "(请|)再说一(遍|次)")
        think = "用户想再看一遍。"
    asked = vary(rng, question, previous.lang)
    return replace(previous, question=asked, think=think, follow_ups=())


def _shorter(rng: Random, previous: Turn) -> Turn:
    lang = previous.lang
    patterns = {
        "en": "(shorter please|in short|in one sentence|make it shorter)",
        "zh": "(简短一点|说短一点|一句话概括|简单说)",
    }
    think = {"en": "The user wants it shorter.", "zh": "用户想要更短的回答。"}[lang]
    question = vary(rng, expand(rng, patterns[lang]), lang)
    return Turn(lang, question, think, first_sentence(previous.answer, lang))


def _system(rng: Random, turn: Turn) -> tuple[str, Turn]:
    """A system prompt, and the turn as it must be answered under it."""
    kind = rng.random()
    if turn.other and kind < 0.25:
        target = rng.choice(LANGUAGES)
        if target != turn.lang:
            turn = replace(turn, lang=target, think=THINK_TRANSLATE[target], answer=turn.other)
        return rng.choice(IN_LANGUAGE[target]), turn
    if turn.other and kind < 0.4 and "```" not in turn.answer:
        short = replace(turn, answer=first_sentence(turn.answer, turn.lang))
        return rng.choice(BRIEF[rng.choice(LANGUAGES)]), short
    return rng.choice(SYSTEMS[rng.choice(LANGUAGES)]), turn


def _persona(rng: Random, lang: str) -> Conversation:
    """A name given by the system prompt."""
    name, asked = person(rng, lang), entry_turn(rng, lang, "who")
    if lang == "en":
        system = rng.choice(
            (f"Your name is {name}.", f"You are {name}, a helpful assistant.", f"You are {name}.")
        )
        think = f"The system prompt calls me {name}."
        answer = f"I am {name}, here to help you. Behind that name is the demo model of ktops."
    else:
        system = rng.choice(
            (f"你的名字是{name}。", f"你叫{name}。", f"你是{name}，一个有用的助手。")
        )
        think = f"系统提示叫我{name}。"
        answer = f"我是{name}，很高兴为你服务。这个名字背后是 ktops 的演示模型。"
    return Conversation(system=system, turn=Turn(lang, asked.question, think, answer))


def _plain(rng: Random, lang: str) -> str:
    """Text without a conversation, for raw completions."""
    makers = (term_turn, entry_turn, function_turn, calculation_turn)
    return rng.choice(makers)(rng, lang).answer
