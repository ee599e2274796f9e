"""Calculations with small integers; the thinking part works digit by digit, from the right."""

from random import Random

from demo_model.corpus.text import vary
from demo_model.corpus.turn import Turn

SIGNS = {
    "+": (("+", "+", "+", " plus "), ("+", "+", "加", "加上")),
    "-": (("-", "-", "-", " minus "), ("-", "-", "减", "减去")),
    "*": (("*", "*", "x", "×", " times "), ("*", "×", "乘以", "乘")),
    "/": (("/", "/", "÷", " divided by "), ("/", "÷", "除以")),
}
EN_ASK = (
    "what is {e}", "what is {e}", "what's {e}", "{e}", "{e}", "{e} =", "{e}=?", "calculate {e}",
    "compute {e}", "how much is {e}", "please calculate {e}", "can you calculate {e}",
    "tell me {e}", "solve {e}", "what does {e} equal", "the result of {e}", "evaluate {e}",
    "what do you get for {e}", "do you know what {e} is", "{e} is",
)  # fmt: skip
ZH_ASK = (
    "{e}等于多少", "{e}等于多少", "{e}等于几", "{e}是多少", "计算{e}", "计算 {e}", "请计算 {e}",
    "{e}=？", "帮我算一下{e}", "算一下{e}", "{e}的结果是多少", "求{e}", "{e}得多少",
    "你知道{e}等于几吗",
)  # fmt: skip
STORIES = {
    "+": (
        (
            "I have {a} apples and buy {b} more. How many do I have",
            "我有{a}个苹果，又买了{b}个，一共有几个",
        ),
        (
            "There are {a} red and {b} blue balls. How many balls are there",
            "有{a}个红球和{b}个蓝球，一共有多少个球",
        ),
        (
            "A train carries {a} people and {b} more get on. How many are there now",
            "车上有{a}人，又上来{b}人，现在有多少人",
        ),
    ),
    "-": (
        ("I have {a} apples and eat {b}. How many are left", "我有{a}个苹果，吃了{b}个，还剩几个"),
        (
            "A shop has {a} books and sells {b}. How many remain",
            "书店有{a}本书，卖了{b}本，还剩多少本",
        ),
        (
            "Tom has {a} coins and gives away {b}. How many coins has he now",
            "小明有{a}枚硬币，送人{b}枚，现在有几枚",
        ),
    ),
    "*": (
        (
            "There are {a} boxes with {b} pens each. How many pens are there",
            "有{a}盒笔，每盒{b}支，一共多少支",
        ),
        ("A book costs {b} yuan. How much do {a} books cost", "一本书{b}元，{a}本书多少钱"),
    ),
}


def is_held_out(a: int, b: int) -> bool:
    """Pairs of two-digit numbers that training never adds or subtracts: the evaluation's."""
    return 10 <= a <= 99 and 10 <= b <= 99 and (min(a, b) * 131 + max(a, b) * 71) % 29 == 0


def work_add(a: int, b: int, lang: str) -> str:
    """Column addition, as it is taught at school."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}"
    lines, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(f"{a:0{width}d}"), reversed(f"{b:0{width}d}"), strict=True):
        total = int(x) + int(y) + carry
        terms = f"{x} + {y}" + (f" + {carry}" if carry else "")
        carry = total // 10
        if lang == "en":
            note = f", write {total % 10}" + (f", carry {carry}" if carry else "")
        else:
            note = f"，写 {total % 10}" + (f"，进 {carry}" if carry else "")
        lines.append(f"{terms} = {total}{note}")
    return _worked("Add from the right:", "从右往左加：", lines, f"{a} + {b} = {a + b}", lang)


def work_subtract(a: int, b: int, lang: str) -> str:
    """Column subtraction; a smaller first number is turned round."""
    if a < b:
        turned = (
            f"{a} < {b}, so the result is negative." if lang == "en" else f"{a} < {b}，结果为负。"
        )
        return f"{turned}\n{_column_subtract(b, a, lang)}\n{a} - {b} = {a - b}"
    return f"{a} {'>' if a > b else '='} {b}\n{_column_subtract(a, b, lang)}"


def _column_subtract(a: int, b: int, lang: str) -> str:
    """a >= b."""
    if a < 20 and b < 10:
        return f"{a} - {b} = {a - b}"
    lines, borrow = [], 0
    width = len(str(a))
    for x, y in zip(reversed(str(a)), reversed(f"{b:0{width}d}"), strict=True):
        top = int(x) - borrow
        terms = f"{x}" + (f" - {borrow}" if borrow else "") + f" - {y}"
        borrow = int(top < int(y))
        if not borrow:
            lines.append(f"{terms} = {top - int(y)}")
            continue
        word = "borrow" if lang == "en" else "借"
        lines.append(f"{terms} < 0, {word} 1: {top + 10} - {y} = {top + 10 - int(y)}")
    return _worked("Subtract from the right:", "从右往左减：", lines, f"{a} - {b} = {a - b}", lang)


def work_multiply(a: int, b: int, lang: str) -> str:
    """Partial products of the second number's digits, then their sum."""
    if a < 10 and b < 10:
        return f"{a} × {b} = {a * b}"
    if b < 10 or a < 10:
        many, one = max(a, b), min(a, b)
        parts = [int(d) * 10**i for i, d in enumerate(reversed(str(many)))][::-1]
        lines = [f"{p} × {one} = {p * one}" for p in parts if p]
        return "\n".join([*lines, _sum_line([p * one for p in parts if p]), f"{a} × {b} = {a * b}"])
    tens, ones = b // 10 * 10, b % 10
    lines = [work_multiply(a, tens // 10, lang), f"{a} × {tens} = {a * tens}"]
    if ones:
        lines += [work_multiply(a, ones, lang), f"{a * tens} + {a * ones} = {a * b}"]
    return "\n".join([*lines, f"{a} × {b} = {a * b}"])


def work_divide(a: int, b: int, lang: str) -> str:
    q, rest = divmod(a, b)
    so = "so" if lang == "en" else "所以"
    if not rest:
        return f"{b} × {q} = {a}, {so} {a} / {b} = {q}"
    return f"{b} × {q} = {b * q}, {a} - {b * q} = {rest}"


def _sum_line(parts: list[int]) -> str:
    return " + ".join(map(str, parts)) + f" = {sum(parts)}"


def _worked(en: str, zh: str, lines: list[str], result: str, lang: str) -> str:
    return "\n".join([en if lang == "en" else zh, *lines, result])


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def draw(rng: Random, sign: str) -> tuple[int, int]:
    """Operands, mostly of two digits, never a held-out pair."""
    while True:
        if sign in "+-":
            sizes = rng.choices((1, 2, 3, 4), (3, 8, 4, 1), k=2)
            a, b = (_number(rng, s) for s in sizes)
            if sign == "-" and rng.random() < 0.2:
                b = max(0, a + rng.randrange(-12, 13) * rng.randrange(2))  # near, or equal
            if sign == "-" and a < b and rng.random() < 0.4:
                a, b = b, a
        elif sign == "*":
            sizes = rng.choice(((1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (2, 2), (3, 1)))
            a, b = (_number(rng, s) for s in sizes)
        else:
            b = rng.randrange(2, 13)
            a = b * rng.randrange(1, 51) if rng.random() < 0.7 else rng.randrange(1, 100)
        if not is_held_out(a, b):
            return a, b


def solve(a: int, sign: str, b: int, lang: str) -> tuple[str, str]:
    """The thinking part and the answer."""
    works = {"+": work_add, "-": work_subtract, "*": work_multiply, "/": work_divide}
    shown = {"*": "×"}.get(sign, sign)
    work = works[sign](a, b, lang)
    if sign != "/":
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        return work, f"{a} {shown} {b} = {value}"
    q, rest = divmod(a, b)
    if not rest:
        return work, f"{a} / {b} = {q}"
    remainder = f"{q} remainder {rest}" if lang == "en" else f"{q} 余 {rest}"
    return work, f"{a} / {b} = {remainder}"


def expression(rng: Random, a: int, sign: str, b: int, lang: str) -> str:
    word = rng.choice(SIGNS[sign][lang == "zh"])
    if word in "+-*/x×÷" and rng.random() < 0.5:
        word = f" {word} "
    return f"{a}{word}{b}"


def calculation_turn(rng: Random, lang: str) -> Turn:
    """One calculation; sometimes wrapped in a story, sometimes with a step that follows."""
    sign = rng.choices("+-*/", (5, 5, 3, 2))[0]
    a, b = draw(rng, sign)
    if sign in STORIES and rng.random() < 0.1 and (sign != "-" or a >= b):
        question = rng.choice(STORIES[sign])[lang == "zh"].format(a=a, b=b)
    else:
        pattern = rng.choice(EN_ASK if lang == "en" else ZH_ASK)
        question = pattern.format(e=expression(rng, a, sign, b, lang))
    think, answer = solve(a, sign, b, lang)
    follow_ups = ()
    if sign != "/":
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        follow_ups = (_continued(rng, value, lang), _sure(rng, answer, lang))
    return Turn(lang, vary(rng, question, lang, keep=True), think, answer, follow_ups=follow_ups)


def _continued(rng: Random, value: int, lang: str) -> Turn:
    """`and plus 5?` after a result."""
    sign, b = rng.choice("+-"), rng.randrange(1, 100)
    if value < 0 or is_held_out(value, b):
        sign, b, value = "+", rng.randrange(1, 10), abs(value)
        question = f"{value} + {b}"
    elif lang == "en":
        question = rng.choice(
            ("and {s} {b}", "now {s} {b}", "{s} {b}", "that {s} {b}", "{s} {b} more")
        )
        question = question.format(s="plus" if sign == "+" else "minus", b=b)
    else:
        question = rng.choice(("再{s}{b}", "再{s} {b} 呢", "然后{s}{b}", "{s}{b}等于多少"))
        question = question.format(s="加" if sign == "+" else "减", b=b)
    think, answer = solve(value, sign, b, lang)
    return Turn(lang, vary(rng, question, lang, keep=True), think, answer)


def _sure(rng: Random, answer: str, lang: str) -> Turn:
    if lang == "en":
        question = rng.choice(("are you sure", "really", "is that right", "is this correct"))
        return Turn(lang, vary(rng, question, lang), "I check my result.", f"Yes, {answer}.")
    question = rng.choice(("你确定吗", "真的吗", "对吗", "这对吗"))
    return Turn(lang, vary(rng, question, lang), "我检查一下结果。", f"是的，{answer}。")
