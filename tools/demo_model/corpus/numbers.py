"""Other small tasks with numbers: comparing, parity, primes, counting, sorting."""

from collections.abc import Callable
from random import Random

from demo_model.corpus.text import vary
from demo_model.corpus.turn import Turn


def compare_turn(rng: Random, lang: str) -> Turn:
    """Which of two numbers is larger; half of the time decimals, such as 9.11 and 9.9."""
    if rng.random() < 0.5:
        a = rng.randrange(1000)
        b = max(0, a + rng.choice((-1, 1)) * rng.randrange(1, 30)) if rng.random() < 0.4 else a
        while b == a:
            b = rng.randrange(1000)
        left, right = str(a), str(b)
        think = f"{a} {'>' if a > b else '<'} {b}"
    else:
        whole = rng.randrange(20)
        x, y = rng.choice(((1, 2), (2, 1), (1, 1), (2, 2)))
        left = f"{whole}.{rng.randrange(10 ** (x - 1), 10**x)}"
        right = f"{whole}.{rng.randrange(10 ** (y - 1), 10**y)}"
        a, b = float(left), float(right)
        think = f"{a:.2f} {'>' if a > b else '<' if a < b else '='} {b:.2f}"
    larger = left if a > b else right
    if lang == "en":
        patterns = ("which is {w}, {} or {}", "which number is {w}: {} or {}")
        question = rng.choice(patterns).replace("{w}", rng.choice(("larger", "bigger", "greater")))
        answer = f"{larger} is larger." if a != b else f"{left} and {right} are equal."
    else:
        question = rng.choice(
            ("{} 和 {} 哪个大", "{}和{}哪个更大", "比较 {} 和 {}", "{} 大还是 {} 大")
        )
        answer = f"{larger} 更大。" if a != b else f"{left} 和 {right} 相等。"
    return Turn(lang, vary(rng, question.format(left, right), lang, keep=True), think, answer)


def parity_turn(rng: Random, lang: str) -> Turn:
    n = rng.randrange(1000)
    even = n % 2 == 0
    if lang == "en":
        question = rng.choice(
            ("is {} even or odd", "is {} even", "is {} an odd number", "is {} odd")
        )
        think = f"The last digit of {n} is {n % 10}."
        answer = f"{n} is {'even' if even else 'odd'}."
    else:
        question = rng.choice(("{}是奇数还是偶数", "{} 是偶数吗", "{}是奇数吗"))
        think = f"{n} 的个位是 {n % 10}。"
        answer = f"{n} 是{'偶数' if even else '奇数'}。"
    return Turn(lang, vary(rng, question.format(n), lang, keep=True), think, answer)


def prime_turn(rng: Random, lang: str) -> Turn:
    """Trial division by the primes up to the square root, written out."""
    n = rng.randrange(2, 122)
    tried = [p for p in (2, 3, 5, 7, 11) if p * p <= n]
    divisor = next((p for p in tried if n % p == 0), None)
    steps = []
    for p in tried:
        steps.append(f"{n} = {p} × {n // p}" + (f" + {n % p}" if n % p else ""))
        if p == divisor:
            break
    if lang == "en":
        question = rng.choice(
            ("is {} prime", "is {} a prime number", "is {} a prime", "check if {} is prime")
        )
        answer = (
            f"Yes, {n} is prime." if divisor is None else f"No, {n} = {divisor} × {n // divisor}."
        )
        think = "\n".join(["I try the small primes.", *steps])
    else:
        question = rng.choice(("{}是质数吗", "{} 是素数吗", "判断{}是不是质数", "{}是不是素数"))
        answer = (
            f"是的，{n} 是质数。"
            if divisor is None
            else f"不是，{n} = {divisor} × {n // divisor}。"
        )
        think = "\n".join(["我用小质数来试。", *steps])
    return Turn(lang, vary(rng, question.format(n), lang, keep=True), think, answer)


def count_turn(rng: Random, lang: str) -> Turn:
    """Count up or down; long answers, for streaming."""
    start = rng.choice((1, 1, 1, 1, 0, rng.randrange(50)))
    end = start + rng.choice((4, 9, 9, 14, 19, 19, 29, 49, 99, rng.randrange(2, 60)))
    if start == 1 and rng.random() < 0.5:
        end = rng.choice((3, 5, 10, 10, 20, 20, 30, 50, 100))
    numbers = list(range(start, end + 1))
    down = rng.random() < 0.15
    if down:
        numbers.reverse()
        start, end = end, start
    if lang == "en":
        patterns = [
            "count from {} to {}",
            "please count from {} to {}",
            "list the numbers from {} to {}",
        ]
        patterns += ["write the numbers {} to {}", "count {} to {}"]
        question = rng.choice(patterns).format(start, end)
        if start == 1 and not down and rng.random() < 0.4:
            question = f"count to {end}"
        think = f"I write the numbers from {start} to {end}."
    else:
        question = rng.choice(("从{}数到{}", "从 {} 数到 {}", "请从{}数到{}", "列出{}到{}的数字"))
        question = question.format(start, end)
        think = f"我写出从 {start} 到 {end} 的数。"
    return Turn(lang, vary(rng, question, lang, keep=True), think, ", ".join(map(str, numbers)))


def sort_turn(rng: Random, lang: str) -> Turn:
    """Sort or find the extremes of a short list."""
    numbers = rng.sample(range(100), rng.randrange(3, 7))
    listed = ", ".join(map(str, numbers))
    ordered = ", ".join(map(str, sorted(numbers)))
    kind = rng.randrange(3)
    if lang == "en":
        question = ("sort {}", "what is the largest of {}", "what is the smallest of {}")[kind]
        think = f"In order: {ordered}."
        answer = (
            f"Sorted: {ordered}",
            f"The largest is {max(numbers)}.",
            f"The smallest is {min(numbers)}.",
        )[kind]
    else:
        question = ("把 {} 从小到大排序", "{} 中最大的是哪个", "{} 中最小的是哪个")[kind]
        think = f"按顺序：{ordered}。"
        answer = (
            f"从小到大：{ordered}",
            f"最大的是 {max(numbers)}。",
            f"最小的是 {min(numbers)}。",
        )[kind]
    return Turn(lang, vary(rng, question.format(listed), lang, keep=True), think, answer)


TASKS: tuple[Callable[[Random, str], Turn], ...] = (
    compare_turn,
    parity_turn,
    prime_turn,
    count_turn,
    sort_turn,
)


def number_turn(rng: Random, lang: str) -> Turn:
    return rng.choice(TASKS)(rng, lang)
