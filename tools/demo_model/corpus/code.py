"""Turns that ask for a small Python function; sources and test cases are in functions.toml."""

from functools import lru_cache
from random import Random
from typing import Any

from demo_model.corpus.text import expand, vary
from demo_model.corpus.topics import load
from demo_model.corpus.turn import Turn, other_language

EN_ASK = (
    "(write|create|implement|make) (a|an|some|one) (python |)function (to|that can) {do}",
    "(give me|show me) a (simple |short |)(python |)function (to|that can) {do}",
    "write a python function to {do}",
    "write a function (in python |)to {do}",
    "write a (python |)function that {does}",
    "write a python function that {does}",
    "(write|show me|give me) (python |some python |)code (to|that can) {do}",
    "how (do|can) i {do} in python",
    "how to {do} in python",
    "(can|could) you (write|show me) (python code|a python function|a function) to {do}",
    "i need a (python |)function (to|that can) {do}",
    "python function for {noun}",
    "python {noun}",
    "{noun} in python",
    "{noun} function",
    "(implement|code|write|program) {noun} in python",
    "(write|give me|show me) a (python |)program (to|that can) {do}",
    "{do} in python",
    "python code for {noun}",
    "define a (python |)function to {do}",
)
ZH_ASK = (
    "写一个{do}的 Python 函数",
    "写一个{do}的 Python 函数",
    "(请|请你|帮我|给我|)写(一个|个){do}的(Python|python|)( |)(函数|代码|程序)",
    "用 (Python|python) (写|实现|编写)(一个|)(函数|程序)(，|来){do}",
    "用 (Python|python) 写(一个|个){do}的(函数|程序|代码)",
    "(怎么|如何)用 (Python|python) {do}",
    "用 (Python|python) (实现|写){noun}",
    "(Python|python) (实现|写){noun}",
    "{noun}的 (Python|python) (代码|函数|实现|程序)",
    "(写|实现|编写)(一个|){noun}(函数|)",
    "(请|帮我|)用 (Python|python) {do}",
    "写一段(Python|python|)代码(，|来){do}",
    "(Python|python) (里|中)(怎么|如何){do}",
    "我需要一个{do}的(Python |)函数",
    "给我一个{do}的 Python (函数|例子|示例)",
)
RECURSIVE = {
    "en": ("recursively", "with recursion", "using recursion", "(recursive version)"),
    "zh": ("用递归", "递归版本", "使用递归", "要用递归"),
}
OTHER_CODE = ("JavaScript", "Java", "C++", "C", "Rust", "Go", "Ruby", "PHP")


@lru_cache
def functions() -> tuple[dict[str, Any], ...]:
    return tuple(load("functions")["function"])


@lru_cache
def _weights() -> tuple[float, ...]:
    return tuple(f.get("weight", 1) for f in functions())


def with_s(phrase: str) -> str:
    """`compute a power` to `computes a power`."""
    verb, _, rest = phrase.partition(" ")
    ending = "es" if verb.endswith(("ch", "sh", "s")) else "s"
    return f"{verb}{ending} {rest}"


def answer_text(function: dict[str, Any], lang: str) -> str:
    """Introduction, fenced code, and one call with its result."""
    code = f"```python\n{function['source'].strip()}\n```"
    call, result = function["cases"][0]
    recursive = function.get("variant") == "recursive"
    if lang == "en":
        how = ", recursively" if recursive else ""
        intro = f"Here is a Python function to {function['en'][0]}{how}:"
        outro = f"For example, `{call}` returns `{result}`."
    else:
        how = "用递归" if recursive else ""
        intro = f"下面是{how}{function['zh'][0]}的 Python 函数："
        outro = f"例如，`{call}` 返回 `{result}`。"
    return f"{intro}\n\n{code}\n\n{outro}"


def thinking(function: dict[str, Any], lang: str) -> str:
    if lang == "en":
        return f"The user wants a Python function to {function['en'][0]}. {function['en_idea']}"
    return f"用户想要一个{function['zh'][0]}的 Python 函数。{function['zh_idea']}"


def _question(rng: Random, function: dict[str, Any], lang: str) -> str:
    pattern = expand(rng, rng.choice(EN_ASK if lang == "en" else ZH_ASK))
    do = rng.choice(function[lang])
    filled = pattern.replace("{do}", do).replace("{does}", with_s(do))
    filled = filled.replace("{noun}", rng.choice(function[f"{lang}_noun"]))
    if function.get("variant") == "recursive":
        joint = " " if lang == "en" else "，"
        filled += joint + rng.choice(RECURSIVE[lang])
    return filled


def function_turn(rng: Random, lang: str) -> Turn:
    """Ask for one function of the list; follow-ups ask to explain, to use or to rewrite it."""
    function = rng.choices(functions(), _weights())[0]
    question = _question(rng, function, lang)
    think = thinking(function, lang)
    answer = answer_text(function, lang)
    if rng.random() < 0.05:
        return _other_language(rng, function, lang)
    other = answer_text(function, other_language(lang))
    follow_ups = (_explain(rng, function, lang), _use(rng, function, lang))
    if function.get("variant") != "recursive":
        follow_ups += _rewrite(rng, function, lang)
    return Turn(lang, vary(rng, question, lang), think, answer, other, follow_ups)


def _other_language(rng: Random, function: dict[str, Any], lang: str) -> Turn:
    """Code in another programming language: say so and answer in Python."""
    name = rng.choice(OTHER_CODE)
    if lang == "en":
        question = f"write a {name} function to {rng.choice(function['en'])}"
        think = (
            f"The user wants {name}, but I only know Python. I offer Python. {function['en_idea']}"
        )
        lead = f"I do not know {name}, only a little Python."
    else:
        question = f"用 {name} 写一个{rng.choice(function['zh'])}的函数"
        think = f"用户想要 {name}，但我只会 Python。我给出 Python 版本。{function['zh_idea']}"
        lead = f"我不会 {name}，只会一点 Python。"
    return Turn(lang, vary(rng, question, lang), think, f"{lead} {answer_text(function, lang)}")


def _explain(rng: Random, function: dict[str, Any], lang: str) -> Turn:
    if lang == "en":
        question = rng.choice(
            (
                "explain (it|the code|this code|the function)",
                "how does (it|this|the code) work",
                "what does it do",
            )
        )
        think, lead = "The user wants an explanation of the code.", "The idea: "
    else:
        question = rng.choice(
            ("解释一下(代码|这段代码|)", "(这段代码|它)是怎么工作的", "讲解一下(代码|)")
        )
        think, lead = "用户想要代码的解释。", "思路："
    question = vary(rng, expand(rng, question), lang)
    return Turn(lang, question, think, lead + function[f"{lang}_idea"])


def _use(rng: Random, function: dict[str, Any], lang: str) -> Turn:
    call, result = function["cases"][-1]
    if lang == "en":
        question = rng.choice(
            ("how do i (use|call) it", "give me an example", "show me how to (use|call|test) it")
        )
        think, text = (
            "The user wants to see a call.",
            f"Call it like this: `{call}`. It returns `{result}`.",
        )
    else:
        question = rng.choice(("怎么(用|调用)", "给个(使用|)例子", "怎么测试"))
        think, text = "用户想看怎么调用。", f"这样调用：`{call}`，返回 `{result}`。"
    return Turn(lang, vary(rng, expand(rng, question), lang), think, text)


def _rewrite(rng: Random, function: dict[str, Any], lang: str) -> tuple[Turn, ...]:
    found = [f for f in functions() if f["name"] == function["name"] and f.get("variant")]
    if not found:
        return ()
    if lang == "en":
        question = rng.choice(
            ("now with recursion", "can you write it recursively", "make it recursive")
        )
    else:
        question = rng.choice(("改成递归", "用递归怎么写", "用递归再写一个"))
    recursive = found[0]
    return (
        Turn(
            lang, vary(rng, question, lang), thinking(recursive, lang), answer_text(recursive, lang)
        ),
    )
