"""What comes before a model is planned and loaded: its files, the kernels, the doctor's checks.

Each stage looks at what is there and does what is missing, so a command that was stopped anywhere
goes on from there when it is given again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ktops.hub.catalogue import DEMO, load_catalogue
from ktops.hub.choose import ModelChoice, choose_model
from ktops.launch.checklist import Checked, refuse_failures, refuse_risks, report_checks, run_subset
from ktops.launch.dummy import DummyOrder, choose_dummy
from ktops.launch.native_build import build_stage, is_built
from ktops.launch.plan_stage import checks_of, early_target, plan_early, refuse_narrow
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes
from ktops_engine.errors import KtopsError
from ktops_engine.text import joined, text

if TYPE_CHECKING:
    from ktops.hub.planning import DownloadPlan
    from ktops.planning.model_plan import ModelPlan
    from ktops_engine.plan import Placement

# Checks of what a build makes: asked when it is made.
_OF_THE_LIBRARY = frozenset({"lib.native", "lib.glibcxx", "lib.glibc", "numa.build"})
_FETCHABLE = frozenset({"model-not-downloaded", "model-incomplete"})


@dataclass(frozen=True)
class Order:
    """What a command line asks for. `command` is how it is given again: ("ktops", "serve").

    `assume_yes` answers the question before a download, `force` goes on where a warning would stop.
    `dummy` asks for random weights, which need no files. `rest` is what else was given.
    """

    command: tuple[str, ...]
    model: str | None = None
    gguf_path: Path | None = None
    model_path: Path | None = None
    assume_yes: bool = False
    force: bool = False
    dummy: DummyOrder | None = None
    rest: tuple[str, ...] = ()

    def again(self, *flags: str) -> str:
        """The same command with `flags`, to paste."""
        words = [*self.command, *([self.model] if self.model else []), *self.rest]
        if self.gguf_path is not None:
            words += ["--gguf-path", str(self.gguf_path)]
        if self.model_path is not None:
            words += ["--model-path", str(self.model_path)]
        if self.dummy is not None:
            words += self.dummy.flags
        return shlex.join([*words, *flags])


@dataclass(frozen=True)
class Absent:
    """A model of the catalogue that is not here, or not whole; `refusal` says which."""

    name: str
    refusal: KtopsError


def obtain(output: Output, settings: Settings, order: Order) -> ModelChoice:
    """The model's files and the native kernels: fetched and built where they are missing.

    Before that, the doctor is asked what can be known before. Random weights need no files. Raises
    KtopsError as every stage.
    """
    found = find_model(output, settings, order)
    if isinstance(found, Absent) and order.dummy is not None:
        found = choose_dummy(output, found)
    building = not is_built()
    if isinstance(found, Absent):
        refuse_unasked(output, order, found)
        check_before_fetching(output, settings, order, found, building=building)
        plan = plan_missing(output, settings, found)
        choice = fetch_stage(output, settings, order, found, plan)
    else:
        choice = found
        if building:
            check_toolchain(output, settings)
    if building:
        build_stage(output)
    return choice


def find_model(output: Output, settings: Settings, order: Order) -> ModelChoice | Absent:
    """The model that `order` means, and whether it is here. Raises KtopsError as `choose_model`,
    except for a model that can be fetched."""
    try:
        choice = choose_model(
            order.model, settings, gguf_path=order.gguf_path, model_path=order.model_path
        )
    except KtopsError as refusal:
        name = order.model or settings.default_model
        if refusal.code not in _FETCHABLE or name is None or not _is_ours(name, settings):
            raise
        return Absent(name, refusal)
    named = choice.name or str(choice.gguf_path)
    output.stage("model", text("{model} ({reason})", model=named, reason=choice.reason))
    output.event("model", name=named, here=True, reason=str(choice.reason))
    return choice


def refuse_unasked(output: Output, order: Order, absent: Absent) -> None:
    """Raise KtopsError (the refusal, with the command that fetches) unless a download was agreed
    to in advance or somebody can be asked."""
    if not order.assume_yes and not output.can_ask:
        raise KtopsError(
            absent.refusal.code,
            absent.refusal.message,
            joined(
                [
                    text("{command}   (fetches it first)", command=order.again("--yes")),
                    absent.refusal.hint,
                ],
                "\n",
            ),
            exit_status=absent.refusal.exit_status,
        )


def plan_missing(output: Output, settings: Settings, absent: Absent) -> DownloadPlan:
    """What fetching the model takes; says it.

    Raises KtopsError as `plan_fetch`, and "disk-too-small".
    """
    from ktops.fetching import plan_fetch
    from ktops.hub.planning import check_space

    plan = plan_fetch(settings, absent.name, on_note=output.note)
    output.stage(
        "fetch",
        text(
            "{missing} of {total} from {hub} to {folder}",
            missing=format_bytes(plan.missing_bytes),
            total=format_bytes(plan.total_bytes),
            hub=plan.hub.name,
            folder=plan.root,
        ),
    )
    output.event(
        "missing",
        hub=plan.hub.name,
        folder=str(plan.root),
        missing_bytes=plan.missing_bytes,
        total_bytes=plan.total_bytes,
    )
    check_space(plan)
    return plan


def fetch_stage(
    output: Output, settings: Settings, order: Order, absent: Absent, plan: DownloadPlan
) -> ModelChoice:
    """Ask unless agreed to in advance, fetch, and return the model with the order's own paths.

    Raises KtopsError "not-confirmed", or as `fetch_model`.
    """
    from ktops.fetching import fetch_model

    if not order.assume_yes and plan.missing_bytes:
        question = text("  Fetch {size}? [y/N] ", size=format_bytes(plan.missing_bytes))
        if not output.confirm(question):
            raise KtopsError(
                "not-confirmed",
                text("{model} is not fetched: nobody agreed to it", model=absent.name),
                order.again("--yes"),
            )
    choice = fetch_model(output, settings, absent.name, plan=plan)
    return replace(choice, model_path=order.model_path or choice.model_path)


def check_before_fetching(
    output: Output, settings: Settings, order: Order, absent: Absent, *, building: bool
) -> ModelPlan | None:
    """Ask the doctor all that can be known before hours of fetching; returns the plan, if any.

    Raises KtopsError "checks-failed", with every figure and what would have to change, and what
    `refuse_doubts` raises.
    """
    from ktops_doctor import BUILD_CHECKS

    output.stage("model", absent.refusal.message)
    output.event("model", name=absent.name, here=False, reason=str(absent.refusal.message))
    plan = plan_early(absent.name, settings)
    placement = plan.served.placement if plan else None
    ids = [*(c for c in checks_of(placement) if c not in _OF_THE_LIBRARY), "disk.space"]
    ids += [check for check in BUILD_CHECKS if building and check not in ids]
    checked = run_subset(ids, early_target(absent.name, settings, plan))
    report_checks(output, checked)
    refuse_unservable(checked, absent.name, (*plan.changes, *plan.differences) if plan else ())
    refuse_doubts(checked, placement, order, absent.name)
    return plan


def refuse_unservable(checked: Checked, model: str, remarks: Iterable[str] = ()) -> None:
    """Raise KtopsError "checks-failed" when a check failed."""
    refuse_failures(checked, text("{model} cannot be served here:", model=model), remarks)


def refuse_doubts(checked: Checked, placement: Placement | None, order: Order, model: str) -> None:
    """Unless forced, raise KtopsError "checks-risky" or "memory-tight" where serving is possible
    and would probably go badly."""
    if order.force:
        return
    refusal = text("{model} would run badly here:", model=model)
    refuse_risks(checked, refusal, order.again("--force"))
    if placement is not None:
        refuse_narrow(placement, order.again("--force"))


def check_toolchain(output: Output, settings: Settings) -> None:
    """Ask the doctor for what a build needs. Raises KtopsError "checks-failed"."""
    checked = toolchain_checks(settings)
    report_checks(output, checked)
    refuse_unbuildable(checked)


def toolchain_checks(settings: Settings) -> Checked:
    """The doctor's answers to what a build needs."""
    from ktops.checkup.targets import target_for
    from ktops_doctor import BUILD_CHECKS

    return run_subset(BUILD_CHECKS, target_for(DEMO, settings))


def refuse_unbuildable(checked: Checked) -> None:
    """Raise KtopsError "checks-failed" when the kernels cannot be built here."""
    refuse_failures(checked, text("the native kernels cannot be built here:"))


def _is_ours(name: str, settings: Settings) -> bool:
    """Whether fetching `name` would fill the folder it is looked for in: a model of the catalogue,
    not a folder of the user's that was registered."""
    from ktops.hub.store import find_model as stored

    entry = load_catalogue().get(name)
    if entry is None or entry.weights_repo is None:
        return False
    return stored(name, settings.models_dir).folder == settings.models_dir / name
