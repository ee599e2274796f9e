"""What the documentation tells people to type exists, and its pages and anchors do too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from ktops.cli import build_command

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
START = "./install.sh && .venv/bin/ktops serve"
TEST = "./install.sh --dev && .venv/bin/pytest"

FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
# Where a shell begins a command: a line (behind its prompt), `;`, `&&`, `|`, `$(`; or a fix.
START_OF_COMMAND = r"(?:^|[;&|(`]|Fix:|or:) *(?:\$ )?(?:[A-Z_]+=\S+ +)*(?:[\w.~-]*/)*"
# A word of it; `;`, `|`, `&`, `>`, `)` and comments end a command.
WORD = r"(?:\"[^\"]*\"|'[^']*'|[^\s;|&()<>#`'\"]+)"
COMMAND = re.compile(rf"{START_OF_COMMAND}ktops(?=\s|$)(?! +->)(?P<words>(?: +{WORD})*)")
LINK = re.compile(r"\]\((?!https?:)(?P<page>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
OUTPUT = re.compile(r"^ktops (?:is|has|runs|needs|reads|\d)\b")  # a line that ktops printed


def code_of(page: str) -> list[str]:
    """The lines of fenced blocks, continued ones joined, and the code spans of the rest."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(page)]
    return [line for block in blocks for line in block.splitlines()] + CODE_SPAN.findall(
        FENCE.sub("", page)
    )


def commands_in(line: str) -> list[list[str]]:
    """The words behind each `ktops` of a line of code; none where it is a file or a sentence."""
    return [] if OUTPUT.search(line) else [shlex.split(m["words"]) for m in COMMAND.finditer(line)]


def mistake_in(words: list[str]) -> str | None:
    """What is wrong with a command line; values are not looked at, so NAME may stand for one."""
    command = build_command()
    context = typer.Context(command, info_name="ktops")
    while hasattr(command, "specs") and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        if command is None:
            return f"no command {name}"
        context = typer.Context(command, info_name=name, parent=context)
    params = command.get_params(context)
    options = {name: param for param in params for name in (*param.opts, *param.secondary_opts)}
    room = sum(1 for param in params if param.param_type_name == "argument")
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("-") or word == "-":
            room -= 1
            if room < 0:
                return f"nothing takes {word!r}"
        elif name.replace("_", "-") not in options:
            return f"no option {name}"
        elif not equals and not options[name.replace("_", "-")].is_flag:
            if not waiting:
                return f"{name} needs a value"
            waiting.pop(0)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_exists(page: Path) -> None:
    wrong = [
        f"{' '.join(['ktops', *words])}: {mistake}"
        for line in code_of(page.read_text(encoding="utf-8"))
        for words in commands_in(line.replace("[MODEL]", "MODEL"))
        if (mistake := mistake_in(words))
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("serve r1-q4km --cpu_infer 65 --port=1", None),
        ("config set port 1", None),
        ("", None),
        ("serve --cpu-infer", "--cpu-infer needs a value"),
        ("serve a b", "nothing takes 'b'"),
        ("serve --fly", "no option --fly"),
        ("config fly", "no command fly"),
        ("fly", "no command fly"),
    ],
)
def test_the_check_of_commands_finds_mistakes(words: str, expected: str | None) -> None:
    assert mistake_in(words.split()) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (".venv/bin/ktops serve", [["serve"]]),
        ("USE_NUMA=1 ktops build && ktops serve -q  # twice", [["build"], ["serve", "-q"]]),
        ('ls "$(ktops models path r1-q4km)"', [["models", "path", "r1-q4km"]]),
        ("ktops/schemas/plan.json", []),
        ("ktops -> ktops_doctor -> ktops_engine", []),
        ("import ktops_engine", []),
        ("ktops is ready", []),
        ("  ok  packages are as ktops wants them", []),
        ("  Fix: ktops build --force", [["build", "--force"]]),
        ("$ ktops doctor --only gpu", [["doctor", "--only", "gpu"]]),
        ("ktops config set api_key - < key.txt", [["config", "set", "api_key", "-"]]),
        (
            "ktops download hf:A/B --include '*Q4 K*'",
            [["download", "hf:A/B", "--include", "*Q4 K*"]],
        ),
    ],
)
def test_commands_are_found_in_code(line: str, expected: list[list[str]]) -> None:
    assert commands_in(line) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target = page.parent / link["page"] if link["page"] else page
        assert target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target.read_text(encoding="utf-8")), link[0]


def anchors(page: str) -> set[str]:
    """The anchors that GitHub and GitLab give to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_and_folder_on_the_map_of_modules_is_there() -> None:
    (block,) = FENCE.findall((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    missing = []
    root = ROOT
    for line in block.splitlines():
        names = re.match(r" *((?:[\w./]+(?:\.py|/) ?)*)", line)[1].split()
        if names and not line.startswith(" "):
            root = ROOT / names[0]
            names = []
            missing += [] if root.is_dir() else [root]
        missing += [root / name for name in names if not (root / name).exists()]
    assert not missing


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
@pytest.mark.parametrize("command", [START, TEST])
def test_a_readme_shows_the_two_commands_as_lines_of_their_own(name: str, command: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    assert command in [line for block in FENCE.findall(page) for line in block.splitlines()]


def test_both_readmes_show_the_same_commands_in_the_same_order() -> None:
    english, chinese = (
        [
            words
            for line in code_of((ROOT / name).read_text(encoding="utf-8"))
            for words in commands_in(line)
        ]
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english == chinese


def test_the_readmes_lead_to_each_other() -> None:
    assert "(README.zh-CN.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(README.md)" in (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
