"""The doctor's findings as people read them and as programs do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ktops.checkup.verdict import Verdict
from ktops.output import Output, cell_width
from ktops.units import format_bytes, format_bytes_decimal
from ktops_doctor import Check, Result, Section, Status, Target
from ktops_engine.errors import EXIT_FAILED, EXIT_PARTIAL
from ktops_engine.text import Text, joined, text

MARKS = {
    Status.OK: (text("ok"), "green"),
    Status.WARN: (text("warn"), "yellow"),
    Status.FAIL: (text("FAIL"), "red"),
    Status.SKIP: (text("skip"), "dim"),
    Status.CRASH: (text("CRASH"), "red"),
}
_MARK_WIDTH = 6
BAD = frozenset({Status.FAIL, Status.CRASH})


@dataclass(frozen=True)
class Report:
    """What is shown: the target's results, per model the ids that stand in its way, and what the
    machine can do (None when only a part was looked at)."""

    target: Target
    results: tuple[Result, ...]
    blocked: dict[str, list[str]]
    strict: bool
    verdict: Verdict | None = None

    def count(self, status: Status) -> int:
        return sum(result.status is status for result in self.results)

    @property
    def failing(self) -> list[str]:
        """Ids that make the command fail."""
        bad = BAD | {Status.WARN} if self.strict else BAD
        return [result.id for result in self.results if result.status in bad]

    @property
    def exit_status(self) -> int:
        if self.count(Status.CRASH):
            return EXIT_PARTIAL
        return EXIT_FAILED if self.failing else 0


def blocking(results: Iterable[Result]) -> list[str]:
    """Ids of the results that stand in a model's way."""
    return [result.id for result in results if result.status in BAD]


def lines(report: Report, output: Output) -> list[str]:
    """The whole report for a person, in the language of `output`."""
    shown = [output.say(_headline(report.target)), *result_lines(report.results, output), ""]
    if report.verdict is not None:
        shown.append(output.say(report.verdict.sentence))
    return [*shown, output.say(closing(report))]


def result_lines(results: Sequence[Result], output: Output) -> list[str]:
    """Every result with its fix, under the headings of the sections."""
    width = max((len(result.id) for result in results), default=0)
    shown: list[str] = []
    section: Section | None = None
    for result in results:
        if result.section is not section:
            section = result.section
            shown += ["", output.style(output.say(section.value), "bold")]
        shown.append(f"  {_mark(result, output)}{result.id:<{width}}  {output.say(result.summary)}")
        if result.fix:
            label = output.style(output.say(text("Fix:")), "bold")
            shown.append(f"        {label} {output.say(result.fix)}")
    return shown


def document(report: Report) -> dict[str, object]:
    """The whole report for a program; see ktops/schemas/doctor.json."""
    target = report.target
    return {
        "target": {
            "name": target.name,
            "title": target.title,
            "weights_bytes": target.weights_bytes,
            "ram_bytes": target.ram_bytes,
            "vram_bytes": target.vram_bytes,
            "cores": target.cores,
            "disk_bytes": target.weights_bytes,
        },
        "checks": [_check_document(result) for result in report.results],
        "summary": {status.value: report.count(status) for status in Status},
        "ready": [name for name, ids in report.blocked.items() if not ids],
        "not_ready": {name: ids for name, ids in report.blocked.items() if ids},
        "verdict": report.verdict.document if report.verdict else None,
    }


def print_checks(output: Output, checks: Sequence[Check]) -> None:
    """The checks themselves, without running any."""
    header = [output.say(name) for name in (text("Id"), text("Section"), text("Question"))]
    rows = [(c.id, output.say(c.section.value), output.say(_question(c))) for c in checks]
    output.result(
        {
            "checks": [
                {
                    "id": c.id,
                    "section": c.section.value,
                    "title": c.title,
                    "needs": list(c.needs),
                    "deep": c.deep,
                }
                for c in checks
            ]
        },
        human=output.table(rows, header) if rows else [],
        quiet=[check.id for check in checks],
    )


def _question(check: Check) -> Text:
    return joined((check.title, "(--deep)"), " ") if check.deep else joined((check.title,))


def _mark(result: Result, output: Output) -> str:
    word, style = MARKS[result.status]
    said = output.say(word)
    return output.style(said + " " * (_MARK_WIDTH - cell_width(said)), style)


def _headline(target: Target) -> Text:
    needs = [text("{size} weights", size=format_bytes(target.weights_bytes))]
    if target.vram_bytes:
        needs.append(text("{size} VRAM", size=format_bytes_decimal(target.vram_bytes)))
    needs.append(text("{size} RAM", size=format_bytes_decimal(target.ram_bytes)))
    return text(
        "Target {model} ({title}): {needs}",
        model=target.name,
        title=target.title,
        needs=joined(needs),
    )


def closing(report: Report) -> Text:
    """The last line: how many of what, which models wait for which checks, which are ready."""
    number = len(report.results)
    counts = joined(_counts(report))
    sentences = [
        text("{number} check: {counts}.", number=1, counts=counts)
        if number == 1
        else text("{number} checks: {counts}.", number=number, counts=counts)
    ]
    waiting = [f"{name} ({', '.join(ids)})" for name, ids in report.blocked.items() if ids]
    ready = [name for name, ids in report.blocked.items() if not ids]
    if waiting:
        sentences.append(text("Not yet: {models}.", models=", ".join(waiting)))
    if ready:
        sentences.append(text("Ready: {models}.", models=", ".join(ready)))
    return joined(sentences, "   ")


def _counts(report: Report) -> list[Text]:
    warnings, failures = report.count(Status.WARN), report.count(Status.FAIL)
    crashes, skipped = report.count(Status.CRASH), report.count(Status.SKIP)
    counts = [text("{count} ok", count=report.count(Status.OK))]
    if warnings:
        counts.append(
            text("{count} warning", count=1)
            if warnings == 1
            else text("{count} warnings", count=warnings)
        )
    if failures:
        counts.append(
            text("{count} failure", count=1)
            if failures == 1
            else text("{count} failures", count=failures)
        )
    if crashes:
        counts.append(
            text("{count} crash", count=1)
            if crashes == 1
            else text("{count} crashes", count=crashes)
        )
    if skipped:
        counts.append(text("{count} skipped", count=skipped))
    return counts


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
        "repairable": result.remedy is not None,
        "docs": result.docs,
        "seconds": round(result.seconds, 3),
    }
