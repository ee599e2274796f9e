"""`ktops doctor --fix`: show what the doctor would do, ask, do it, and say how to take it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ktops.output import Output
from ktops_doctor import Remedy, Result, Section, Status, apply
from ktops_engine.text import text

_MENDABLE = frozenset({Status.WARN, Status.FAIL})


class State(StrEnum):
    """How a repair ended. `PLANNED`: it was shown, and nobody was to do it (--dry-run)."""

    PLANNED = "planned"
    DECLINED = "declined"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Repair:
    """One remedy and the checks that it is for. `reason` says why it failed."""

    check_ids: tuple[str, ...]
    remedy: Remedy
    state: State = State.PLANNED
    reason: str = ""


def repairs_for(results: Iterable[Result]) -> list[Repair]:
    """What the doctor can mend of these results, each remedy once. Python packages come first:
    what follows may need them."""
    found: dict[tuple[tuple[str, ...], ...], Repair] = {}
    for result in sorted(results, key=lambda result: result.section is not Section.PYTHON):
        if result.remedy is None or result.status not in _MENDABLE:
            continue
        known = found.get(result.remedy.commands)
        ids = (*known.check_ids, result.id) if known else (result.id,)
        found[result.remedy.commands] = Repair(ids, result.remedy)
    return list(found.values())


def left_over(results: Iterable[Result]) -> list[Result]:
    """What is wrong and has a fix that the doctor does not do: it needs root, or judgement."""
    wrong = (Status.WARN, Status.FAIL, Status.CRASH)
    return [r for r in results if r.status in wrong and r.fix and r.remedy is None]


def show(repairs: Sequence[Repair], output: Output) -> None:
    """Every repair with its commands and how it is undone."""
    output.note()
    if not repairs:
        output.note(text("There is nothing that the doctor can mend by itself."))
    for number, repair in enumerate(repairs, 1):
        output.note(
            text(
                "{number}. {title} ({checks})",
                number=number,
                title=repair.remedy.title,
                checks=", ".join(repair.check_ids),
            )
        )
        for line in repair.remedy.lines:
            output.note(f"     {line}")
        undo = repair.remedy.undo or text("nothing to undo: only ktops' own cache is written")
        output.note(text("     Undo: {undo}", undo=undo))


def show_left_over(results: Sequence[Result], output: Output) -> None:
    """The lines that are left to the user."""
    if results:
        output.note()
        output.note(text("Left to you, for it needs root or your judgement:"))
    for result in results:
        output.note(text("     {command}   ({check})", command=result.fix, check=result.id))


def agreed(output: Output, *, yes: bool) -> bool:
    """Whether the user wants the repairs: --yes, or an answer on the terminal."""
    if yes:
        return True
    if not output.can_ask:
        output.note(text("Nothing was changed. To do it: {command}", command=_CONSENT))
        return False
    output.note()
    return output.confirm(text("Do this now? [y/N] "))


_CONSENT = "ktops doctor --fix --yes"


def carry_out(repairs: Sequence[Repair], output: Output) -> list[Repair]:
    """Do them one after another; one that fails does not keep the next from being tried."""
    done = []
    for repair in repairs:
        output.stage("fix", repair.remedy.title)
        reason = apply(repair.remedy, lambda line: output.note(f"          {line}"))
        state = State.FAILED if reason else State.DONE
        done.append(replace(repair, state=state, reason=reason))
        if reason:
            output.warn(
                text("{checks}: {reason}", checks=", ".join(repair.check_ids), reason=reason),
                repair.remedy.line,
            )
        elif repair.remedy.undo:
            output.stage("undo", repair.remedy.undo)
    return done


def document(repairs: Iterable[Repair], left: Iterable[Result]) -> dict[str, object]:
    """The repairs and what is left, for a program."""
    return {
        "repairs": [
            {
                "checks": list(repair.check_ids),
                "title": repair.remedy.title,
                "commands": list(repair.remedy.lines),
                "undo": repair.remedy.undo or None,
                "state": repair.state.value,
                "reason": repair.reason or None,
            }
            for repair in repairs
        ],
        "left": [{"id": result.id, "fix": result.fix} for result in left],
    }
