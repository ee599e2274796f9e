"""What redraws itself does so on a person's terminal only, and in colour only where it may."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from ktops.download_view import DownloadView
from ktops.hub.planning import Item, Step
from ktops.hub.remote import Listing, RemoteFile
from ktops.launch.progress import LoadView
from ktops.monitor.readings import Readings
from ktops.monitor.server_metrics import Sample
from ktops.monitor.view import choose_view
from ktops.output import Mode, Output
from ktops_engine.types import LoadProgress

MIB = 1 << 20
COLOR = re.compile(r"\x1b\[[0-9;]*m")
ESCAPE = "\x1b"


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, or is not."""

    def __init__(self, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def text(self) -> str:
        return self.buffer.getvalue().decode()


def load(output: Output) -> None:
    ticks = iter(range(100, 10_000, 20))
    with LoadView(output, lambda: float(next(ticks))) as view:
        for done in (1, 2, 3):
            view.update(LoadProgress("read", done * MIB, 4 * MIB))
        view.finish()


def download(output: Output) -> None:
    ticks = iter(range(100, 10_000, 20))
    item = Item(
        Listing("owner/name", "main", ()), RemoteFile("a.gguf", 4 * MIB, None), "a.gguf",
        Step.FETCH, 0,
    )  # fmt: skip
    with DownloadView(output, 4 * MIB, 0, clock=lambda: float(next(ticks))) as view:
        for _ in range(3):
            view.add(item, MIB)


def top(output: Output) -> None:
    sample = Sample(0.0, "demo", "ready", 0, 0, 0.0, 0, 0, 0, 0, MIB, 0, {}, {})
    with choose_view(output, "http://127.0.0.1:10002") as view:
        for _ in range(3):
            view.show(Readings(sample).add(sample))


View = Callable[[Output], None]
VIEWS = pytest.mark.parametrize("view", [load, download, top])


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], tuple[Terminal, Terminal]]:
    """`streams(tty)` puts stdout and stderr in place and returns them."""
    monkeypatch.setenv("COLUMNS", "100")

    def replace(tty: bool) -> tuple[Terminal, Terminal]:
        pair = Terminal(tty), Terminal(tty)
        monkeypatch.setattr(sys, "stdout", pair[0])
        monkeypatch.setattr(sys, "stderr", pair[1])
        return pair

    return replace


@VIEWS
def test_a_terminal_gets_a_display_in_colour_and_its_cursor_back(streams, view: View):
    stdout, stderr = streams(True)
    view(Output())
    assert COLOR.search(stderr.text())
    assert stderr.text().count("\x1b[?25l") == stderr.text().count("\x1b[?25h") == 1
    assert stdout.text() == ""


@VIEWS
@pytest.mark.parametrize("how", ["NO_COLOR", "--no-color"])
def test_without_colour_the_display_stays(streams, monkeypatch, view: View, how):
    _, stderr = streams(True)
    if how == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    view(Output(no_color=how == "--no-color"))
    assert not COLOR.search(stderr.text())
    assert "\x1b[?25h" in stderr.text()


@VIEWS
@pytest.mark.parametrize(
    ("variable", "value", "tty"),
    [("TERM", "dumb", True), ("CI", "true", True), ("CI", "1", True), ("TERM", "xterm", False)],
)
def test_elsewhere_there_are_plain_lines(streams, monkeypatch, view: View, variable, value, tty):
    stdout, stderr = streams(tty)
    monkeypatch.setenv(variable, value)
    view(Output())
    said = stdout.text() + stderr.text()
    assert ESCAPE not in said
    assert "\r" not in said
    assert said.count("\n") >= 3


@VIEWS
@pytest.mark.parametrize("mode", [Mode.JSON, Mode.QUIET])
def test_a_program_gets_no_display_even_on_a_terminal(streams, view: View, mode):
    stdout, stderr = streams(True)
    view(Output(mode=mode))
    assert ESCAPE not in stdout.text()
    assert "\x1b[?25" not in stderr.text()  # nothing redraws itself
    if mode is Mode.JSON:
        assert all(line.startswith("{") for line in stdout.text().splitlines())


@VIEWS
def test_an_exception_gives_the_terminal_back(streams, view: View, monkeypatch):
    _, stderr = streams(True)

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.Progress.update", interrupt)
    monkeypatch.setattr("rich.live.Live.update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        view(Output())
    assert stderr.text().count("\x1b[?25h") == 1
