"""Data on stdout, the rest on stderr; colour and marks only where they can be shown."""

from __future__ import annotations

import io
import json
import sys

import pytest

from ktops.output import Mode, Output, cell_width
from ktops_engine.errors import KtopsError


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, with an encoding."""

    def __init__(self, encoding: str = "utf-8", tty: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(encoding=, tty=)` puts such streams in place and returns (stdout, stderr)."""
    for name in ("NO_COLOR", "CI", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def make(**how):
        streams = Terminal(**how), Terminal(**how)
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        return streams

    return make


def say_everything(output: Output) -> None:
    output.stage("plan", "text")
    output.note("note")
    output.warn("warning", "fix it")
    output.error(KtopsError("code", "message", "hint"))
    output.stream("dimmed", "dim")
    output.result({}, human=output.table([("a", "b")], ("A", "B"), dim_columns=(1,)))


def test_a_terminal_gets_colour(terminal):
    stdout, stderr = terminal()
    say_everything(Output())
    assert "\x1b[2mdimmed\x1b[0m" in stdout.text()
    assert "\x1b[31;1merror:\x1b[0m message" in stderr.text()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("NO_COLOR", "1"), ("TERM", "dumb"), ("CI", "true"), (None, "--no-color"), (None, "pipe")],
)
def test_no_escape_codes_where_they_are_unwanted(terminal, monkeypatch, variable, value):
    stdout, stderr = terminal(tty=value != "pipe")
    if variable:
        monkeypatch.setenv(variable, value)
    say_everything(Output(no_color=value == "--no-color"))
    assert "\x1b" not in stdout.text() + stderr.text()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_a_variable_that_says_no_changes_nothing(terminal, monkeypatch, value):
    terminal()
    monkeypatch.setenv("CI", value)
    monkeypatch.setenv("NO_COLOR", "")
    assert Output().has_color(sys.stdout)


def test_quiet_keeps_warnings_and_errors_and_drops_the_rest(terminal):
    stdout, stderr = terminal(tty=False)
    output = Output(mode=Mode.QUIET)
    output.stage("plan", "text")
    output.note("note")
    output.warn("careful")
    output.event("load", done=1)
    output.result({"a": 1}, human=["for people"], quiet=["bare"])
    assert stdout.text() == "bare\n"
    assert stderr.text() == "warning: careful\n"


def test_json_prints_one_document_with_the_schema_version(terminal):
    stdout, _ = terminal(tty=False)
    Output(mode=Mode.JSON).result({"name": "模型"}, human=["for people"], quiet=["bare"])
    assert json.loads(stdout.text()) == {"schema_version": 1, "name": "模型"}
    assert "模型" in stdout.text()


def test_events_are_single_lines_of_json(terminal):
    stdout, _ = terminal(tty=False)
    output = Output(mode=Mode.JSON)
    output.event("load", done_bytes=1)
    output.event("ready", url="http://x")
    events = [json.loads(line) for line in stdout.text().splitlines()]
    assert [event["event"] for event in events] == ["load", "ready"]


@pytest.mark.parametrize(
    ("answer", "agreed"),
    [("y", True), (" YES ", True), ("是", True), ("", False), ("n", False), ("yeah", False)],
)
def test_only_a_yes_is_a_yes(terminal, monkeypatch, answer, agreed):
    stdout, _ = terminal()
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda question: stdout.write(question) and answer)
    assert Output().confirm("Do it? ") is agreed
    assert stdout.text() == "Do it? "


@pytest.mark.parametrize(
    ("mode", "tty"), [(Mode.JSON, True), (Mode.QUIET, True), (Mode.HUMAN, False)]
)
def test_where_nobody_can_be_asked_the_answer_is_no(terminal, monkeypatch, mode, tty):
    stdout, _ = terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(tty=tty))
    assert not Output(mode).confirm("Do it? ")
    assert stdout.text() == ""


def test_an_ascii_stream_gets_escapes_and_never_an_exception(terminal):
    stdout, stderr = terminal(encoding="ascii", tty=False)
    output = Output()
    output.note("你好")
    output.result({}, human=["模"])
    Output(mode=Mode.JSON).result({"name": "模型"}, human=())
    first, document = stdout.text().split("\n", 1)
    assert first == "\\u6a21"
    assert json.loads(document)["name"] == "模型"
    assert stderr.text() == "\\u4f60\\u597d\n"


def test_a_lone_surrogate_is_no_failure(terminal):
    stdout, _ = terminal(tty=False)
    Output().stream("a\ud83db")
    assert stdout.text() == "a?b"


def test_a_table_aligns_wide_characters_and_ends_no_line_in_blanks(terminal):
    terminal(tty=False)
    lines = Output().table([("模型", "x", ""), ("a", "yy", "end")], ("Name", "B", "C"))
    assert lines == ["Name  B   C", "模型  x", "a     yy  end"]
    assert cell_width("模型e\u0301") == 5


def test_an_error_without_a_hint_has_no_fix_line(terminal):
    _, stderr = terminal(tty=False)
    Output().error(KtopsError("code", "message"))
    assert stderr.text() == "error: message\n"
