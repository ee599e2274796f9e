"""What this machine can do with a model, in one sentence: the plan's answer.

It is asked in a child because planning measures, and imports what may be broken here: whatever
happens to it, the report goes on, and the sentence says why there is no plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ktops.units import format_bytes
from ktops_doctor import Host, Target
from ktops_doctor.host import SILENT, CommandOutput
from ktops_engine.text import Text, joined, text

TIME_LIMIT = 2.5
DEEP_TIME_LIMIT = 60.0
_CHILD = "ktops.checkup.plan_child"


@dataclass(frozen=True)
class Verdict:
    """`document`: {"can_serve": true, false or null, "tokens_per_s": [low, high] or null}.

    `ram_bytes` is what the plan takes of RAM, None where there is no plan.
    """

    sentence: Text
    document: Mapping[str, object]
    ram_bytes: int | None = None


def ask_plan(host: Host, target: Target, *, deep: bool) -> Callable[[], Verdict]:
    """Start planning the target; the value, when called, waits for the answer."""
    limit = DEEP_TIME_LIMIT if deep else TIME_LIMIT
    answer: SimpleQueue[Verdict] = SimpleQueue()

    def ask() -> None:
        try:
            command = (host.python().executable, "-P", "-m", _CHILD, target.name)
            answer.put(_verdict(target, host.run(*command, time_limit=limit)))
        except Exception as error:  # noqa: BLE001 - a plan that breaks must not break the doctor
            answer.put(_no_plan(target, f"{type(error).__name__}: {error}"))

    Thread(target=ask, name="plan", daemon=True).start()
    return answer.get


def _verdict(target: Target, output: CommandOutput) -> Verdict:
    if output.timed_out:
        return _no_plan(target, text("it took too long; ktops plan waits for it"))
    if not output.ok:
        lines = [line.strip() for line in output.stderr.splitlines() if line.strip()]
        return _no_plan(target, lines[-1] if lines else SILENT)
    facts = json.loads(output.stdout)
    can_serve = facts["needed_bytes"] is None
    verdict = _can(target, facts) if can_serve else _cannot(target, facts)
    return replace(verdict, ram_bytes=facts["ram_bytes"])


def _can(target: Target, facts: Mapping[str, Any]) -> Verdict:
    rate = facts["tokens_per_s"]
    document = {"can_serve": True, "tokens_per_s": rate}
    if rate is None:
        sentence = text(
            "This machine can hold {model}; how fast it is, nobody measured: {command}",
            model=target.name,
            command="ktops build",
        )
        return Verdict(sentence, document)
    sentence = text(
        "This machine can serve {model} at about {rate} tok/s.",
        model=target.name,
        rate=_range(rate),
    )
    faster = facts["with_all_gpus_tokens_per_s"]
    if faster is not None:
        later = text(
            "All that its GPUs have could make that {rate}; what keeps it from that: {command}",
            rate=_range(faster),
            command=f"ktops plan {target.name}",
        )
        sentence = joined((sentence, later), " ")
    return Verdict(sentence, document)


def _cannot(target: Target, facts: Mapping[str, Any]) -> Verdict:
    sentence = text(
        "This machine cannot serve {model}: {there} of the {needed} of RAM that it needs.",
        model=target.name,
        there=format_bytes(facts["there_bytes"]),
        needed=format_bytes(facts["needed_bytes"]),
    )
    if facts.get("instead"):
        other = text("It can serve {model}.", model=facts["instead"])
        sentence = joined((sentence, other), " ")
    return Verdict(sentence, {"can_serve": False, "tokens_per_s": None})


def _no_plan(target: Target, reason: str) -> Verdict:
    sentence = text("No plan for {model}: {reason}", model=target.name, reason=reason)
    return Verdict(sentence, {"can_serve": None, "tokens_per_s": None})


def _range(rate: tuple[float, float]) -> str:
    """'9-12', '0.4-0.6', or one number where both ends read alike."""
    low, high = (f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in rate)
    return low if low == high else f"{low}-{high}"
