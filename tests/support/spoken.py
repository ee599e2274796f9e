"""What the sources say to people, read from their syntax: calls, sentences, hints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ktops_doctor.check import Section

ROOT = Path(__file__).parents[2]
PACKAGES = ("ktops", "engine/ktops_engine", "doctor/ktops_doctor")

# Calls whose words reach a person, and which of their arguments do: (position, keyword). A name
# with a dot is a method of Output, one without is a function or class.
SENTENCES = {
    "KtopsError": ((1, "message"),),
    ".stage": ((1, "sentence"),),
    ".note": ((0, "sentence"),),
    ".warn": ((0, "sentence"),),
    ".prompt": ((0, "question"),),
    "ok": ((0, "value"), (1, "expected")),
    "warn": ((0, "value"), (1, "expected"), (None, "detail")),
    "fail": ((0, "value"), (1, "expected"), (None, "detail")),
    "skip": ((0, "reason"),),
    "Finding": ((1, "value"), (2, "expected"), (3, "detail")),
    "Check": ((1, "title"),),
}
# The same for what is to be run or changed next: a bare command may stay a plain string.
HINTS = {
    "KtopsError": ((2, "hint"),),
    ".warn": ((1, "fix"),),
    "warn": ((None, "fix"),),
    "fail": ((None, "fix"),),
    "Finding": ((4, "fix"),),
}
# Programs that a hint may begin with.
PROGRAMS = frozenset(
    {
        "apt", "apt-get", "cat", "chmod", "chown", "conda", "cp", "curl", "df", "dmesg",
        "dnf", "docker", "du", "echo", "export", "file", "find", "free", "git", "kill",
        "ktops", "ln", "ls", "lscpu", "lspci", "mkdir", "modprobe", "mount", "mv",
        "numactl", "nvidia-smi", "pip", "ps", "python", "python3", "rm", "sh", "ss",
        "sudo", "swapoff", "sysctl", "systemctl", "tail", "tee", "test", "ulimit", "unset",
    }
)  # fmt: skip
# Words of plain strings that no language changes.
NAMES = PROGRAMS | {"as", "cmake", "ninja"}
PROSE = re.compile(r"#| {2,}|, |: |\bor\b|\bthen\b")


@dataclass(frozen=True)
class Call:
    """One call in the sources, with the function or module that it stands in."""

    path: Path
    node: ast.Call
    scope: ast.AST

    @property
    def name(self) -> str:
        if isinstance(self.node.func, ast.Attribute):
            return f".{self.node.func.attr}"
        return getattr(self.node.func, "id", "")

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.node.lineno}"

    def argument(self, position: int | None, keyword: str) -> ast.expr | None:
        named = [given.value for given in self.node.keywords if given.arg == keyword]
        placed = [] if position is None else self.node.args[position : position + 1]
        return (named + placed + [None])[0]


@cache
def modules() -> tuple[tuple[Path, ast.Module], ...]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


@cache
def calls() -> tuple[Call, ...]:
    def within(path: Path, node: ast.AST, scope: ast.AST) -> Iterator[Call]:
        for child in ast.iter_child_nodes(node):
            inner = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope
            if isinstance(child, ast.Call):
                yield Call(path, child, scope)
            yield from within(path, child, inner)

    return tuple(call for path, tree in modules() for call in within(path, tree, tree))


def templates() -> set[str]:
    """The literals of all text(...), and the headings of the doctor's report."""
    found = {section.value for section in Section}
    for call in calls():
        if call.name == "text":
            first = call.node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
            elif call.path.name != "text.py":
                raise AssertionError(f"{call.place}: the template of text() is not a literal")
    return found


def origins(value: ast.expr | None, scope: ast.AST, depth: int = 3) -> Iterator[ast.expr]:
    """The expressions that `value` may be: both sides of a choice, what a local name was given."""
    if isinstance(value, ast.IfExp):
        yield from origins(value.body, scope, depth)
        yield from origins(value.orelse, scope, depth)
    elif isinstance(value, ast.BoolOp):
        for part in value.values:
            yield from origins(part, scope, depth)
    elif isinstance(value, ast.Name) and depth:
        for node in ast.walk(scope):
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(node, ast.Assign | ast.AnnAssign) and any(
                isinstance(target, ast.Name) and target.id == value.id for target in targets
            ):
                yield from origins(node.value, scope, depth - 1)
    elif value is not None:
        yield value


def finished(value: ast.expr) -> str | None:
    """The words of an expression that makes a plain string, X for its values; None: it does not."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "X" for part in value.values
        )
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add | ast.Mod):
        left, right = finished(value.left), finished(value.right)
        return None if left is None and right is None else f"{left or 'X'}{right or 'X'}"
    return None


def has_words(finished_string: str) -> bool:
    """Whether a plain string says something, beside values, names and abbreviations."""
    return any(
        word not in NAMES and not word.isupper()
        for word in re.findall(r"[A-Za-z_]{2,}", finished_string)
    )


def is_command(words: str) -> bool:
    """Whether a hint is nothing but something to paste into a shell."""
    if PROSE.search(words.strip()):
        return False
    rest = [word for word in words.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if rest[:1] == ["X"]:  # a program found at run time, or the path of a command of ktops
        return rest[1:2] == [] or rest[1].startswith("-") or rest[1] in ("install", "X")
    return bool(rest) and (rest[0] in PROGRAMS or rest[0].startswith("--"))
