"""Which hub a download comes from, and which one can stand in for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from ktops.hub.errors import hub_silent
from ktops.hub.huggingface import HuggingFace
from ktops.hub.measure import Answer, ask_all, measure_all
from ktops.hub.modelscope import ModelScope
from ktops.hub.planning import DownloadPlan, make_plan
from ktops.hub.remote import Hub
from ktops.hub.request import Request
from ktops.units import format_rate
from ktops_engine.errors import KtopsError
from ktops_engine.text import joined, text

GRACE_S = 4.0  # for the other hub, once one has answered
MEASURED_FROM_BYTES = 256 << 20  # less is here before a measurement pays


class Source(StrEnum):
    """AUTO asks both hubs and takes the faster one."""

    AUTO = "auto"
    HF = "hf"
    MODELSCOPE = "modelscope"


# What another hub may do better. Anything else is wrong with the request or with this machine.
ELSEWHERE = frozenset(
    {
        "hub-unreachable",
        "hub-failed",
        "hub-rate-limited",
        "hub-not-found",
        "hub-denied",
        "file-too-large",
        "checksum-mismatch",
    }
)


def plan_download(
    request: Request,
    endpoint: str | None,
    *,
    reread: bool = False,
    measure: bool = True,
    on_note: Callable[[str], None],
) -> DownloadPlan:
    """The plan with the hub for `request`; `others` can go on where that one fails.

    A request that leaves the choice asks both hubs at once, and where both have the model reads a
    little from each (`measure`). `endpoint` is of the hub that the request names, else of Hugging
    Face. `on_note` hears what decided. Raises KtopsError as `make_plan` and `Hub.list_files`.
    """
    if request.source == Source.MODELSCOPE:
        return make_plan(request, ModelScope(endpoint), reread=reread)
    first = HuggingFace(endpoint)
    if request.source == Source.HF or endpoint is not None:
        return make_plan(request, first, reread=reread)
    hubs: tuple[Hub, ...] = (first, ModelScope())
    answers = ask_all(hubs, lambda hub: make_plan(request, hub, reread=reread), GRACE_S)
    for answer in answers:
        if isinstance(answer.error, KtopsError) and answer.error.code == "hub-offline":
            raise answer.error  # who forbids one hub wants no network at all
    plans = [answer.value for answer in answers if answer.value is not None]
    if not plans:
        raise _refused([_why(*pair) for pair in zip(hubs, answers, strict=True)])
    if len(plans) == 1:
        (refusal,) = (_why(*pair) for pair in zip(hubs, answers, strict=True) if not pair[1].value)
        on_note(text("{why}; taking {hub}", why=refusal.message, hub=plans[0].hub.name))
        return plans[0]
    least = min(plans, key=lambda plan: (not plan.is_done, plan.missing_bytes))
    if least.missing_bytes < MEASURED_FROM_BYTES:
        return _in_order([least, *(plan for plan in plans if plan is not least)])
    return _faster(plans, on_note) if measure else _in_order(plans)


def _faster(plans: list[DownloadPlan], on_note: Callable[[str], None]) -> DownloadPlan:
    """The plan of the hub that sends faster, the others behind it."""
    rates = measure_all(plans)
    order = sorted(range(len(plans)), key=lambda index: -rates[index])
    ranked = [plans[index] for index in order]
    shown = (
        text("{hub} sends {rate}", hub=plan.hub.name, rate=format_rate(rate))
        for plan, rate in zip(plans, rates, strict=True)
    )
    on_note(text("{rates}: taking {hub}", rates=joined(shown), hub=ranked[0].hub.name))
    return _in_order(ranked)


def _in_order(plans: list[DownloadPlan]) -> DownloadPlan:
    return replace(plans[0], others=tuple(plan.hub for plan in plans[1:]))


def _why(hub: Hub, answer: Answer[DownloadPlan]) -> KtopsError:
    """Why a hub gave no plan."""
    return answer.error if isinstance(answer.error, KtopsError) else hub_silent(hub, GRACE_S)


def _refused(refusals: list[KtopsError]) -> KtopsError:
    """All hubs failed: the first one's error, with what the others said."""
    first = refusals[0]
    message = joined(dict.fromkeys(refusal.message for refusal in refusals), "\n")
    return KtopsError(first.code, message, first.hint, exit_status=first.exit_status)
