"""One model on one machine: does it fit, how fast can it be, and what would have to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ktops.hub.catalogue import load_catalogue
from ktops.hub.store import entry_of
from ktops.planning.model_facts import described_facts, is_described, model_facts
from ktops.planning.speeds import Speed, side_by_side
from ktops.settings import ALL_GPU_MEMORY, Settings
from ktops.units import format_bytes
from ktops_engine.config import EngineConfig
from ktops_engine.text import Text, text

if TYPE_CHECKING:
    from ktops_engine.machine import MachineFacts
    from ktops_engine.measured_speeds import MeasuredSpeeds
    from ktops_engine.plan import Lack, ModelFacts, Placement, Prediction, Unknown


@dataclass(frozen=True)
class Outcome:
    """One way to run a model on a machine. `lack` is the RAM that is missing, None when it fits;
    `prediction` is what it could do if nothing lacked, `measured` what it did on this machine
    before (None: nothing is known), `speeds` has both side by side."""

    placement: Placement
    prediction: Prediction | Unknown
    lack: Lack | None
    measured: MeasuredSpeeds | None
    speeds: tuple[Speed, ...]

    @property
    def fits(self) -> bool:
        return self.lack is None

    @property
    def decode_tokens_per_s(self) -> tuple[float, float] | None:
        """(low, high) tokens a second for one request; None when it does not fit or is unknown."""
        rate = getattr(self.prediction, "decode_tokens_per_s", None)
        return rate if self.fits else None


@dataclass(frozen=True)
class ModelPlan:
    """A model on a machine.

    `planned` uses all that the machine has; `served` is what this version's server does, the same
    object where that is no different, and `differences` says why it is. `spare_gpu` uses all the
    GPU memory there is, None where that makes no difference. `largest_ctx` is the longest context
    that fits (0: none); `changes` says what would have to change.
    """

    name: str
    title: str
    facts: ModelFacts
    machine: MachineFacts
    planned: Outcome
    served: Outcome
    spare_gpu: Outcome | None
    largest_ctx: int
    changes: tuple[Text, ...]

    @property
    def fits(self) -> bool:
        return self.planned.fits

    @property
    def differences(self) -> tuple[str, ...]:
        """What keeps this version's server from all that the machine has."""
        said = self.planned.placement.notes
        return tuple(note for note in self.served.placement.notes if note not in said)


def plan_model(
    name: str,
    settings: Settings,
    machine: MachineFacts | None = None,
) -> ModelPlan:
    """Plan the model `name`, here or not, for `machine` (default: this one, and what was measured
    on it).

    Context, threads and what GPUs give come from `settings`. Never raises because something does
    not fit: `lack` and `changes` of the answer say so. Raises KtopsError: unknown-model,
    model-not-described, invalid-cpu-infer, invalid-ctx-size (status 2), and what opening weight
    files raises.
    """
    from ktops.planning.machines.live import this_machine

    entry = entry_of(name, settings.models_dir)
    return plan_facts(
        entry.alias,
        entry.title,
        model_facts(entry, settings),
        settings,
        this_machine() if machine is None else machine,
        is_here=machine is None,
    )


def plan_facts(
    name: str,
    title: str,
    facts: ModelFacts,
    settings: Settings,
    machine: MachineFacts,
    *,
    is_here: bool = False,
) -> ModelPlan:
    """The same for a model whose facts are known already; `is_here`: `machine` is this one."""
    from ktops_engine.plan import largest_context, place, place_served

    config = EngineConfig(
        gguf_path=settings.models_dir / name,
        cpu_infer=settings.cpu_threads,
        ctx_size=settings.ctx_size,
        gpu_memory_bytes=settings.gpu_memory_bytes,
        gpu_experts=settings.most_gpu_experts,
    )
    outcome = partial(_outcome, facts, machine, is_here=is_here)
    served = outcome(place_served(config, facts, machine))
    placement = place(config, facts, machine)
    is_same = placement == replace(served.placement, notes=placement.notes)
    planned = served if is_same else outcome(placement)
    return ModelPlan(
        name=name,
        title=title,
        facts=facts,
        machine=machine,
        planned=planned,
        served=served,
        spare_gpu=_with_spare_gpu(config, facts, machine, planned),
        largest_ctx=largest_context(config, facts, machine),
        changes=(
            *_changes(planned, settings, config, facts, machine),
            *([] if is_same else _lack_of_vram(config, facts, machine)),
        ),
    )


def largest_fitting_model(
    settings: Settings, machine: MachineFacts, below_bytes: int | None = None
) -> tuple[str, int] | None:
    """Alias and weight bytes of the largest catalogue model that this version can serve on
    `machine`, of those with fewer than `below_bytes`; None when there is none."""
    from ktops_engine.plan import place_served

    wish = EngineConfig(settings.models_dir)
    fitting = []
    for entry in load_catalogue().values():
        if is_described(entry):
            facts = described_facts(entry)
            size = facts.bytes.total
            fits = place_served(wish, facts, machine).fits
        else:
            size = entry.needs.disk_bytes
            fits = entry.needs.ram_bytes <= machine.available_ram_bytes
        if fits and (below_bytes is None or size < below_bytes):
            fitting.append((size, entry.alias))
    return max(((alias, size) for size, alias in fitting), key=lambda row: row[1], default=None)


def _outcome(
    facts: ModelFacts, machine: MachineFacts, placement: Placement, *, is_here: bool = False
) -> Outcome:
    from ktops_engine.measured_speeds import recalled_speeds
    from ktops_engine.plan import lack_of_ram, predict

    prediction = predict(placement, facts, machine)
    measured = recalled_speeds(placement, facts, machine) if is_here else None
    return Outcome(
        placement,
        prediction,
        lack_of_ram(placement),
        measured,
        side_by_side(placement, prediction, measured, facts, machine),
    )


def _with_spare_gpu(
    config: EngineConfig, facts: ModelFacts, machine: MachineFacts, planned: Outcome
) -> Outcome | None:
    """The outcome with all GPU memory in use, where that puts more experts there."""
    is_wished = config.gpu_memory_bytes is not None or config.gpu_experts is not None
    if is_wished or not planned.placement.gpus:
        return None
    from ktops_engine.plan import place

    wish = replace(config, gpu_memory_bytes=ALL_GPU_MEMORY)
    filled = _outcome(facts, machine, place(wish, facts, machine))
    more = filled.placement.ram.routed_bytes < planned.placement.ram.routed_bytes
    return filled if more or filled.placement.hot_experts else None


def _changes(
    planned: Outcome,
    settings: Settings,
    config: EngineConfig,
    facts: ModelFacts,
    machine: MachineFacts,
) -> Iterator[Text]:
    """What would have to change for the model to fit."""
    from ktops_engine.plan import largest_context

    if (lack := planned.lack) is None:
        return
    numbers = {
        "there": format_bytes(lack.there_bytes),
        "needed": format_bytes(lack.needed_bytes),
        "missing": format_bytes(lack.missing_bytes),
    }
    smaller = largest_fitting_model(settings, machine, facts.bytes.total)
    if smaller is None:
        yield text("RAM: {there} there, {needed} needed: {missing} more", **numbers)
    else:
        alias, size = smaller
        yield text(
            "RAM: {there} there, {needed} needed: {missing} more, or {model} ({size})",
            **numbers,
            model=alias,
            size=format_bytes(size),
        )
    if fitting := largest_context(config, facts, machine):
        yield text("context: it fits with --ctx-size {tokens}", tokens=fitting)


def _lack_of_vram(config: EngineConfig, facts: ModelFacts, machine: MachineFacts) -> Iterator[Text]:
    """What the first GPU lacks, where the server does not use it: else its notes say so."""
    from ktops_engine.plan import every_token_gpu_bytes, usable_bytes

    usable = usable_bytes(config, machine.gpus[0])
    needed = every_token_gpu_bytes(config, facts)
    if usable < needed:
        yield text(
            "VRAM: {there} there, {needed} needed for all that every token uses: the CPU takes "
            "the rest of it",
            there=format_bytes(usable),
            needed=format_bytes(needed),
        )
