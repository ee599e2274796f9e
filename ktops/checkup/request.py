"""What a user asks of the doctor, and the checks that this stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ktops_doctor import Check
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import Text, text


@dataclass(frozen=True)
class Request:
    """The options of `ktops doctor`. `only` and `skip` hold ids, topics and lists with commas."""

    model: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    list_checks: bool = False
    strict: bool = False
    deep: bool = False
    fix: bool = False
    yes: bool = False
    dry_run: bool = False

    @property
    def whole(self) -> bool:
        """Whether all that is usually asked is asked, so that readiness can be claimed."""
        return not self.only and not self.skip

    def validate(self) -> None:
        """Raises KtopsError "usage" for options that make no sense together."""
        for option, given in (("--yes", self.yes), ("--dry-run", self.dry_run)):
            if given and not self.fix:
                raise KtopsError(
                    "usage",
                    text("{option} is about the repairs of --fix", option=option),
                    f"ktops doctor --fix {option}",
                    exit_status=EXIT_USAGE,
                )


def selected(checks: Sequence[Check], request: Request) -> list[Check]:
    """The checks that are to be run or listed. One that takes long is run with --deep, or when it
    is named.

    Raises KtopsError "unknown-check", with the id that was probably meant.
    """
    deep = request.deep or request.list_checks
    if request.only:
        wanted = _named(checks, request.only, deep=deep)
    else:
        wanted = {check.id for check in checks if deep or not check.deep}
    wanted -= _named(checks, request.skip, deep=True)
    return [check for check in checks if check.id in wanted]


def _named(checks: Sequence[Check], names: Iterable[str], *, deep: bool) -> set[str]:
    """Ids that `names` stand for: an id, a topic ("gpu" is every gpu.*), lists with commas."""
    found: set[str] = set()
    for name in (part.strip() for given in names for part in given.split(",") if part.strip()):
        topic = [check for check in checks if name == check.id.partition(".")[0]]
        ids = {check.id for check in topic if deep or not check.deep}
        ids |= {check.id for check in checks if check.id == name}
        if not topic and not ids:
            raise _unknown_check(name, checks)
        found |= ids
    return found


def _unknown_check(name: str, checks: Sequence[Check]) -> KtopsError:
    problem: Text = text("no check is named {name}", name=repr(name))
    close = get_close_matches(name, [check.id for check in checks], n=1, cutoff=0.5)
    if close:
        problem = text("{problem}; did you mean {names}?", problem=problem, names=repr(close[0]))
    return KtopsError(
        "unknown-check", problem, "ktops doctor --list-checks", exit_status=EXIT_USAGE
    )
