"""How `ktops top` shows a reading: a panel that redraws itself, or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

from ktops.monitor.readings import Latency, Reading
from ktops.output import Output, cell_width, is_live
from ktops.units import format_bytes, format_rate
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

INDENT = "  "
SEPARATOR = "   "


class View(Protocol):
    """Shows one reading after the other."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *details: object) -> None: ...
    def show(self, reading: Reading) -> None: ...


def choose_view(output: Output, url: str) -> View:
    """A live panel where both streams are terminals for people, else a line a reading."""
    if output.live and is_live(sys.stdout):
        return LivePanel(output, url)
    return Lines(output)


class LivePanel:
    """Redraws the rows of a reading in place."""

    def __init__(self, output: Output, url: str) -> None:
        self._output = output
        self._url = url
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(console=self._output.console(), auto_refresh=False)
        self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, reading: Reading) -> None:
        if self._live is not None:
            self._live.update(self._table(reading), refresh=True)

    def _table(self, reading: Reading) -> Table:
        from rich.table import Table
        from rich.text import Text as RichText

        table = Table.grid(padding=(0, 2))
        for label, value in rows(reading, self._url):
            name, words = self._output.say(label), self._output.say(value)
            table.add_row(RichText(f"{INDENT}{name}", style="bold"), RichText(words))
        return table


class Lines:
    """A plain line on stdout, or a line of JSON, for each reading; quiet: tokens a second."""

    def __init__(
        self, output: Output, clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S")
    ) -> None:
        self._output = output
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def show(self, reading: Reading) -> None:
        if self._output.is_json:
            self._output.event("sample", **reading.document())
            return
        self._output.result({}, human=[_line(reading, self._clock())], quiet=[bare(reading)])


def rows(reading: Reading, url: str) -> list[tuple[Text, str]]:
    """Label and value of everything a reading knows."""
    sample = reading.sample
    found: list[tuple[Text, str]] = [
        (
            text("Server"),
            text(
                "{model} at {url}, {state}", model=sample.model, url=url, state=_state(sample.state)
            ),
        ),
        (text("Speed"), joined([_speed(reading), _prompts(reading)], SEPARATOR)),
        (text("Requests"), _requests(reading)),
        (text("TTFT"), _percentiles(reading.time_to_first_token)),
        (text("TPOT"), _percentiles(reading.time_per_output_token)),
        (text("Experts"), _rate(reading.expert_bytes_per_s)),
        (text("KV cache"), _percent(sample.kv_cache_usage)),
        (text("RAM"), format_bytes(sample.ram_bytes)),
    ]
    for node, num_bytes in sample.node_bytes.items():
        value = joined([format_bytes(num_bytes), _rate(reading.node_bytes_per_s(node))], SEPARATOR)
        found.append((text("Node {number}", number=node), value))
    return [*found, (text("VRAM"), format_bytes(sample.vram_bytes))]


def lines(reading: Reading, url: str, output: Output) -> list[str]:
    """The rows as lines of two columns, in the output's language."""
    said = [(output.say(label), output.say(value)) for label, value in rows(reading, url)]
    width = max(cell_width(label) for label, _ in said)
    return [
        f"{INDENT}{label}{' ' * (width - cell_width(label))}{INDENT}{value}"
        for label, value in said
    ]


def bare(reading: Reading) -> str:
    """Tokens a second, as a number."""
    return f"{reading.generation_tokens_per_s:.1f}"


def _line(reading: Reading, clock: str) -> Text:
    sample = reading.sample
    parts: list[str] = [
        clock,
        _speed(reading),
        _prompts(reading),
        text("experts {rate}", rate=_rate(reading.expert_bytes_per_s)),
        text("{count} running", count=sample.num_running),
        text("{count} waiting", count=sample.num_waiting),
        text("TTFT {seconds}", seconds=_seconds(reading.time_to_first_token, 50)),
        text("TPOT {seconds}", seconds=_seconds(reading.time_per_output_token, 50)),
        text("KV {percent}", percent=_percent(sample.kv_cache_usage)),
        text("RAM {size}", size=format_bytes(sample.ram_bytes)),
        text("VRAM {size}", size=format_bytes(sample.vram_bytes)),
    ]
    if len(sample.node_bytes) > 1:
        parts += [
            text("node {number} {rate}", number=node, rate=_rate(reading.node_bytes_per_s(node)))
            for node in sample.node_bytes
        ]
    return joined(parts, INDENT)


def _state(state: str) -> str:
    words = {
        "ready": text("ready"),
        "loading": text("loading"),
        "draining": text("finishing its last answers"),
        "dead": text("its engine has stopped"),
    }
    return words.get(state, state)


def _speed(reading: Reading) -> Text:
    return text("{rate} tok/s", rate=bare(reading))


def _prompts(reading: Reading) -> Text:
    return text("prompts {rate} tok/s", rate=f"{reading.prompt_tokens_per_s:.1f}")


def _requests(reading: Reading) -> Text:
    sample = reading.sample
    finished = sample.finished
    parts = [
        text("{count} running", count=sample.num_running),
        text("{count} waiting", count=sample.num_waiting),
        text("{count} finished", count=finished.get("stop", 0) + finished.get("length", 0)),
    ]
    if finished.get("abort"):
        parts.append(text("{count} aborted", count=finished["abort"]))
    if finished.get("error"):
        parts.append(text("{count} failed", count=finished["error"]))
    return joined(parts, SEPARATOR)


def _percentiles(latency: Latency) -> Text:
    if not latency.count:
        return text("none yet")
    each = [f"p{share} {_seconds(latency, share)}" for share in latency.percentiles]
    found = joined(each, SEPARATOR)
    if latency.over_s is None:
        return text("{percentiles}   since the start", percentiles=found)
    seconds = f"{latency.over_s:.0f}"
    return text("{percentiles}   last {seconds} s", percentiles=found, seconds=seconds)


def _seconds(latency: Latency, share: int) -> str:
    value = latency.percentiles.get(share)
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else format_rate(bytes_per_s)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
