"""Which language people are spoken to in, on the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ktops.language import Language, fits, language_of
from ktops.output import Mode, Output
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

Run = Callable[..., subprocess.CompletedProcess[str]]

WRONG_PORT = ("config", "set", "port", "http")
IN_ENGLISH = (
    "error: port is 'http': it must be a whole number from 0 to 65535\n"
    "  Fix: ktops config set port VALUE\n"
)
IN_CHINESE = (
    "错误: port 的值是 'http'：应为介于 0 和 65535 之间的整数\n"
    "  解决: ktops config set port VALUE\n"
)


@pytest.fixture
def ktops_process(work_dir: Path) -> Run:
    """`ktops_process("models", LANG="C")` runs that command line in an environment of its own."""

    def call(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name.startswith("XDG_")}
        return subprocess.run(
            [sys.executable, "-m", "ktops", *args],
            env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8", **kept, **environ},
            capture_output=True,
            encoding=environ.get("PYTHONIOENCODING", "utf-8"),
            timeout=60,
        )

    return call


@pytest.mark.parametrize(
    ("args", "environ", "expected"),
    [
        ([], {}, "en"),
        ([], {"LANG": "zh_CN.UTF-8"}, "zh"),
        ([], {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ([], {"LANG": "de_DE.UTF-8"}, "en"),
        ([], {"LANG": "en_US.UTF-8", "KTOPS_LANG": "zh"}, "zh"),
        (["serve", "--lang", "zh"], {"KTOPS_LANG": "en"}, "zh"),
        (["serve", "--lang=en"], {"LANG": "zh_CN.UTF-8"}, "en"),
        (["serve", "--lang"], {"LANG": "zh_CN.UTF-8"}, "zh"),
        (["serve", "--lang", "tlh"], {}, "en"),
    ],
)
def test_the_flag_then_the_variable_then_the_locale_choose_the_language(
    args: list[str], environ: dict[str, str], expected: str
) -> None:
    assert language_of(args, environ) == expected


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        (("--lang", "zh"), {}),
        (("--lang", "zh"), {"KTOPS_LANG": "en"}),
        ((), {"KTOPS_LANG": "zh"}),
        ((), {"LANG": "zh_CN.UTF-8"}),
    ],
)
def test_an_error_of_the_command_line_is_said_in_chinese(
    ktops_process: Run, flags: tuple[str, ...], environ: dict[str, str]
) -> None:
    done = ktops_process(*WRONG_PORT, *flags, **environ)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", IN_CHINESE)


def test_without_a_wish_the_language_is_english(ktops_process: Run) -> None:
    assert ktops_process(*WRONG_PORT).stderr == IN_ENGLISH


def test_the_option_may_stand_before_the_command(ktops_process: Run) -> None:
    assert ktops_process("--lang", "zh", *WRONG_PORT).stderr == IN_CHINESE


def test_an_answer_is_said_in_chinese_too(ktops_process: Run) -> None:
    done = ktops_process("config", "set", "port", "8000", "--lang", "zh")
    assert done.returncode == 0
    assert done.stdout.endswith("config.toml 中已写入 port = 8000\n")


def test_a_mistake_that_the_parser_finds_is_said_in_chinese(ktops_process: Run) -> None:
    done = ktops_process("version", "--jsn", LANG="zh_CN.UTF-8")
    assert done.returncode == 2
    assert done.stderr == (
        "错误: 没有这个选项：--jsn；是不是想用 --json？\n  解决: ktops version --help\n"
    )


def test_json_stays_english(ktops_process: Run) -> None:
    done = ktops_process(*WRONG_PORT, "--json", "--lang", "zh")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == {
        "code": "invalid-setting",
        "message": "port is 'http': it must be a whole number from 0 to 65535",
        "hint": "ktops config set port VALUE",
    }


def test_quiet_lines_stay_as_scripts_know_them(capsys: pytest.CaptureFixture[str]) -> None:
    Output(mode=Mode.QUIET, language=Language.ZH).result({}, human=(), quiet=[text("Value")])
    assert capsys.readouterr().out == "Value\n"


def test_a_language_that_ktops_does_not_speak_is_a_usage_error(ktops_process: Run) -> None:
    done = ktops_process("version", "--lang", "tlh")
    assert done.returncode == 2
    assert done.stderr == (
        "error: invalid value for '--lang': 'tlh' is not one of 'en', 'zh'\n"
        "  Fix: ktops version --help\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "big5"])
def test_where_an_output_cannot_carry_chinese_it_is_english(
    ktops_process: Run, encoding: str
) -> None:
    done = ktops_process(*WRONG_PORT, "--lang", "zh", PYTHONIOENCODING=encoding)
    assert done.stderr == IN_ENGLISH


@pytest.mark.parametrize("encoding", ["gbk", "gb18030"])
def test_the_encodings_of_simplified_chinese_carry_it(ktops_process: Run, encoding: str) -> None:
    done = ktops_process(*WRONG_PORT, "--lang", "zh", PYTHONIOENCODING=encoding)
    assert done.stderr == IN_CHINESE


@pytest.mark.parametrize(
    ("language", "encoding", "expected"),
    [
        (Language.ZH, "utf-8", True),
        (Language.ZH, None, False),
        (Language.ZH, "no-such-encoding", False),
        (Language.EN, None, True),
    ],
)
def test_an_encoding_fits_a_language_or_not(
    language: Language, encoding: str | None, expected: bool
) -> None:
    assert fits(language, encoding) is expected


def test_a_hint_with_several_lines_is_indented_by_the_width_of_its_label(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(language=Language.ZH).error(KtopsError("x", text("error:"), "one\ntwo"))
    assert capsys.readouterr().err.splitlines()[1:] == ["  解决: one", "        two"]
