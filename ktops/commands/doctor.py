"""`ktops doctor`: hold this machine against what a model needs, with the fix for what is wrong."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.hub.catalogue import DEMO, CatalogueEntry, find_entry
from ktops.output import Output
from ktops.settings import Settings, load_settings
from ktops.units import format_bytes, format_bytes_decimal
from ktops_doctor import Check, LiveHost, Result, Status, Target, all_checks, run_checks
from ktops_engine.errors import EXIT_FAILED, EXIT_PARTIAL, EXIT_USAGE, KtopsError

EXAMPLES = (
    ("ktops doctor", "is it ready for the default model?"),
    ("ktops doctor --model demo", "is it ready for this one?"),
    ("ktops doctor --only gpu,mem.total", "some checks, by topic or id"),
    ("ktops doctor -q", "the ids of the checks that fail"),
    ("ktops doctor --json", "everything, for a program"),
)

DEFAULT_TARGET = "r1-q4km"
_MARKS = {
    Status.OK: ("ok", "green"),
    Status.WARN: ("warn", "yellow"),
    Status.FAIL: ("FAIL", "red"),
    Status.SKIP: ("skip", "dim"),
    Status.CRASH: ("CRASH", "red"),
}
_MARK_WIDTH = 6
_BAD = frozenset({Status.FAIL, Status.CRASH})


@dataclass(frozen=True)
class _Report:
    """What is shown: the target's results, and per model the ids that stand in its way."""

    target: Target
    results: list[Result]
    blocked: dict[str, list[str]]
    strict: bool

    def count(self, status: Status) -> int:
        return sum(result.status is status for result in self.results)

    @property
    def failing(self) -> list[str]:
        bad = _BAD | {Status.WARN} if self.strict else _BAD
        return [result.id for result in self.results if result.status in bad]

    @property
    def exit_status(self) -> int:
        if self.count(Status.CRASH):
            return EXIT_PARTIAL
        return EXIT_FAILED if self.failing else 0


def doctor(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model to check for; default: the settings' default, else {DEFAULT_TARGET}.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="IDS", help="Checks to run, by id or topic (gpu)."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="IDS", help="Checks to leave out.")
    ] = None,
    list_checks: Annotated[
        bool, typer.Option("--list-checks", help="List the checks; run none.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
) -> None:
    """Check this machine against what a model needs, with the fix for what is wrong.

    Exit status: 0 no failure, 1 a check failed, 2 usage, 3 a check crashed.
    """
    output = output_of(ctx)
    checks = _selected(all_checks(), only or [], skip or [])
    if list_checks:
        _print_list(output, checks)
        return
    settings = load_settings()
    target = target_for(model or settings.default_model or DEFAULT_TARGET, settings)
    whole = not only and not skip
    report = _examine(target, settings, [check.id for check in checks], strict, whole=whole)
    output.result(_document(report), human=_lines(report, output), quiet=report.failing)
    if report.exit_status:
        raise typer.Exit(report.exit_status)


def target_for(alias: str, settings: Settings) -> Target:
    """What the model `alias` asks of a machine. Raises KtopsError "unknown-model"."""
    entry = find_entry(alias)
    return Target(
        name=entry.alias,
        title=entry.title,
        weights_bytes=entry.needs.disk_bytes,
        ram_bytes=entry.needs.ram_bytes,
        vram_bytes=entry.needs.vram_bytes,
        cores=entry.needs.cores,
        disk_bytes=entry.needs.disk_bytes,
        gpu_required=entry.needs.vram_bytes > 0,
        present_bytes=_present_bytes(entry, settings.models_dir),
        weights=_weights(entry, settings.models_dir),
        models_dir=str(settings.models_dir.expanduser().absolute()),
        host=settings.host,
        port=settings.port,
    )


def _present_bytes(entry: CatalogueEntry, models_dir: Path) -> int:
    """Bytes of the model's files that are on the disk, finished or not."""
    if entry.weights_repo is None:
        return entry.needs.disk_bytes
    paths = (models_dir / entry.alias).rglob("*")
    return min(entry.needs.disk_bytes, sum(map(_file_bytes, paths)))


def _weights(entry: CatalogueEntry, models_dir: Path) -> str:
    """A weight file of the model, '' when there is none, "demo" for the embedded one."""
    if entry.weights_repo is None:
        return DEMO
    shards = sorted((models_dir / entry.alias).rglob("*.gguf"))
    return str(shards[0].absolute()) if shards else ""


def _file_bytes(path: Path) -> int:
    """The size of a file; 0 for a folder and for what may not be looked at."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _selected(checks: Sequence[Check], only: list[str], skip: list[str]) -> list[Check]:
    """Checks named by `only` (all when empty) without those named by `skip`."""
    wanted = _named(checks, only) if only else {check.id for check in checks}
    wanted -= _named(checks, skip)
    return [check for check in checks if check.id in wanted]


def _named(checks: Sequence[Check], names: Iterable[str]) -> set[str]:
    """Ids that `names` stand for: an id, a topic ("gpu" is every gpu.*), lists with commas."""
    found: set[str] = set()
    for name in (part.strip() for text in names for part in text.split(",") if part.strip()):
        ids = {check.id for check in checks if name in (check.id, check.id.partition(".")[0])}
        if not ids:
            raise _unknown_check(name, checks)
        found |= ids
    return found


def _unknown_check(name: str, checks: Sequence[Check]) -> KtopsError:
    close = get_close_matches(name, [check.id for check in checks], n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return KtopsError(
        "unknown-check",
        f"no check is named {name!r}{guess}",
        "ktops doctor --list-checks",
        exit_status=EXIT_USAGE,
    )


def _examine(
    target: Target, settings: Settings, ids: list[str], strict: bool, *, whole: bool
) -> _Report:
    """Run the checks; when all were asked for, also say what the demo lacks. The host remembers
    its answers, so the second round costs nothing."""
    host = LiveHost()
    results = run_checks(ids, host, target)
    blocked: dict[str, list[str]] = {}
    if whole:
        blocked[target.name] = _blocking(results)
        if target.name != DEMO:
            blocked[DEMO] = _blocking(run_checks(ids, host, target_for(DEMO, settings)))
    return _Report(target, results, blocked, strict)


def _blocking(results: Iterable[Result]) -> list[str]:
    return [result.id for result in results if result.status in _BAD]


def _lines(report: _Report, output: Output) -> list[str]:
    width = max((len(result.id) for result in report.results), default=0)
    lines = [_headline(report.target)]
    section = None
    for result in report.results:
        if result.section is not section:
            section = result.section
            lines += ["", output.style(section.value, "bold")]
        word, style = _MARKS[result.status]
        mark = output.style(f"{word:<{_MARK_WIDTH}}", style)
        lines.append(f"  {mark}{result.id:<{width}}  {result.summary}")
        if result.fix:
            lines.append(f"        {output.style('Fix:', 'bold')} {result.fix}")
    return [*lines, "", _closing(report)]


def _headline(target: Target) -> str:
    needs = [f"{format_bytes(target.weights_bytes)} weights"]
    if target.vram_bytes:
        needs.append(f"{format_bytes_decimal(target.vram_bytes)} VRAM")
    needs.append(f"{format_bytes_decimal(target.ram_bytes)} RAM")
    return f"Target {target.name} ({target.title}): {', '.join(needs)}"


def _closing(report: _Report) -> str:
    counts = [f"{report.count(Status.OK)} ok"]
    for status, one, many in (
        (Status.WARN, "warning", "warnings"),
        (Status.FAIL, "failure", "failures"),
        (Status.CRASH, "crash", "crashes"),
        (Status.SKIP, "skipped", "skipped"),
    ):
        if number := report.count(status):
            counts.append(f"{number} {one if number == 1 else many}")
    number = len(report.results)
    sentences = [f"{number} {'check' if number == 1 else 'checks'}: {', '.join(counts)}."]
    waiting = [f"{name} ({', '.join(ids)})" for name, ids in report.blocked.items() if ids]
    ready = [name for name, ids in report.blocked.items() if not ids]
    if waiting:
        sentences.append(f"Not yet: {', '.join(waiting)}.")
    if ready:
        sentences.append(f"Ready: {', '.join(ready)}.")
    return "   ".join(sentences)


def _document(report: _Report) -> dict[str, object]:
    target = report.target
    return {
        "target": {
            "name": target.name,
            "title": target.title,
            "weights_bytes": target.weights_bytes,
            "ram_bytes": target.ram_bytes,
            "vram_bytes": target.vram_bytes,
            "cores": target.cores,
            "disk_bytes": target.disk_bytes,
        },
        "checks": [_check_document(result) for result in report.results],
        "summary": {status.value: report.count(status) for status in Status},
        "ready": [name for name, ids in report.blocked.items() if not ids],
        "not_ready": {name: ids for name, ids in report.blocked.items() if ids},
    }


def _check_document(result: Result) -> dict[str, object]:
    return {
        "id": result.id,
        "section": result.section.value,
        "title": result.title,
        "status": result.status.value,
        "value": result.value,
        "expected": result.expected or None,
        "detail": result.detail or None,
        "fix": result.fix or None,
        "docs": result.docs,
        "seconds": round(result.seconds, 3),
    }


def _print_list(output: Output, checks: Sequence[Check]) -> None:
    rows = [(check.id, check.section.value, check.title) for check in checks]
    output.result(
        {
            "checks": [
                {"id": c.id, "section": c.section.value, "title": c.title, "needs": list(c.needs)}
                for c in checks
            ]
        },
        human=output.table(rows, ("Id", "Section", "Question")) if rows else [],
        quiet=[check.id for check in checks],
    )
