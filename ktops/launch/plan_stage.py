"""The plan as a stage: what goes where on this machine, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ktops.hub.catalogue import load_catalogue
from ktops.hub.choose import ModelChoice
from ktops.launch.dummy import DummyOrder, dummy_weights
from ktops.launch.plan_line import Expectation, show_plan
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes
from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.text import joined, text

if TYPE_CHECKING:
    from ktops.planning.model_plan import ModelPlan
    from ktops_doctor import Target
    from ktops_engine.machine import MachineFacts
    from ktops_engine.plan import ModelFacts, Placement
    from ktops_engine.source import ModelSource

# Below this a prediction helps nobody, and measuring the memory takes longer than loading.
PREDICTED_BYTES = 1 << 30


@dataclass(frozen=True)
class Site:
    """A model whose files are here, and where it would lie on this machine, fitting or not."""

    choice: ModelChoice
    source: ModelSource
    config: EngineConfig
    machine: MachineFacts
    placement: Placement

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.choice.name or str(self.choice.gguf_path)


def look(
    settings: Settings,
    choice: ModelChoice,
    dummy: DummyOrder | None = None,
    source: ModelSource | None = None,
) -> Site:
    """Open the headers of the files, read their configuration, and place the model, with random
    weights if `dummy` asks for them. `source`: what a caller has opened of the same files; None:
    they are opened here.

    Raises KtopsError for files that are not whole or not supported, and for settings that do not
    go with the model.
    """
    from ktops.planning.machines.live import with_gpu_rates
    from ktops_engine.gpus import engine_machine
    from ktops_engine.plan import place_served
    from ktops_engine.source import open_source

    config = EngineConfig(
        gguf_path=choice.gguf_path,
        model_path=choice.model_path,
        cpu_infer=settings.cpu_threads,
        ctx_size=settings.ctx_size,
        gpu_memory_bytes=settings.gpu_memory_bytes,
        gpu_experts=settings.most_gpu_experts,
        dummy=None if dummy is None else dummy_weights(dummy, choice),
        numa=settings.numa,
    )
    source = source or open_source(config)
    machine = _with_thread_rates(with_gpu_rates(engine_machine()), config, source.facts)
    placement = place_served(config, source.facts, machine)
    return Site(choice, source, config, machine, placement)


def _with_thread_rates(
    machine: MachineFacts, config: EngineConfig, facts: ModelFacts
) -> MachineFacts:
    """`machine` with what is known of numbers of threads: measured on the first use of a model for
    which it matters, and only remembered where a number was given."""
    from ktops_engine.plan import MEASURED_BYTES

    if facts.bytes.total <= MEASURED_BYTES:
        return machine
    from ktops_engine.threads import remembered_thread_rates, thread_rates

    ask = thread_rates if config.cpu_infer is None else remembered_thread_rates
    return replace(machine, thread_rates=ask(machine))


def checks_of(placement: Placement | None) -> tuple[str, ...]:
    """Ids of the doctor's checks before serving, with those for a GPU where one is used."""
    from ktops_doctor import GPU_CHECKS, SERVE_CHECKS

    uses_gpu = placement is not None and placement.gpus
    return (*SERVE_CHECKS, *GPU_CHECKS) if uses_gpu else SERVE_CHECKS


def target_of(site: Site, settings: Settings) -> Target:
    """What the doctor holds this machine against: the bytes of the plan, and a GPU where it puts
    something on one."""
    from ktops_doctor import Target

    size = site.source.gguf.total_bytes
    known = load_catalogue().get(site.name)
    return Target(
        name=site.name,
        title=known.title if known else site.name,
        weights_bytes=size,
        ram_bytes=site.placement.total_bytes,
        vram_bytes=site.placement.first_vram_bytes,
        cores=known.needs.cores if known else 1,
        present_bytes=size,
        weights=str(site.choice.gguf_path),
        models_dir=str(site.source.gguf.paths[0].parent),
        host=settings.host,
        port=settings.port,
    )


def plan_early(name: str, settings: Settings) -> ModelPlan | None:
    """The plan for a model of the catalogue that is not here yet, from its description; None for
    one that is not described. Raises KtopsError as `plan_model`."""
    from ktops.planning.model_plan import plan_model

    try:
        return plan_model(name, settings)
    except KtopsError as error:
        if error.code != "model-not-described":
            raise
        return None


def early_target(name: str, settings: Settings, plan: ModelPlan | None) -> Target:
    """What the doctor holds this machine against before the model is here.

    Raises KtopsError "unknown-model".
    """
    from ktops.checkup.targets import target_for

    target = target_for(name, settings)
    if plan is None:
        return replace(target, vram_bytes=0)
    placement = plan.served.placement
    return replace(target, ram_bytes=placement.total_bytes, vram_bytes=placement.first_vram_bytes)


def show_site(output: Output, site: Site) -> None:
    """One line: what goes where, with how many threads, how fast it may be.

    Raises KtopsError "not-enough-memory", with the numbers.
    """
    from ktops_engine.measured_speeds import recalled_speeds
    from ktops_engine.plan import plan

    placement = plan(site.config, site.source.facts, site.machine)
    measured = recalled_speeds(placement, site.source.facts, site.machine)
    show_plan(output, placement, Expectation.of(_predict(site), measured))


def refuse_narrow(placement: Placement, forced_command: str) -> None:
    """Raise KtopsError "memory-tight" where the model fits and hardly anything beside it."""
    from ktops_engine.plan import SPARE_RAM_SHARE

    spare = placement.ram.usable_bytes - placement.total_bytes
    if spare < SPARE_RAM_SHARE * placement.total_bytes:
        raise KtopsError(
            "memory-tight",
            text(
                "this model needs {needed} of the {available} that are free: only {spare} would "
                "be left, and anything else that grows gets something killed",
                needed=format_bytes(placement.total_bytes),
                available=format_bytes(placement.ram.usable_bytes),
                spare=format_bytes(spare),
            ),
            joined(
                [
                    text("free memory, or give a smaller --ctx-size"),
                    text("{command}   (goes on all the same)", command=forced_command),
                ],
                "\n",
            ),
            exit_status=EXIT_NOT_ENOUGH,
        )


def _predict(site: Site) -> tuple[float, float] | None:
    """Tokens a second to expect; None for a small model, and where the memory's speed is not
    known."""
    from ktops_engine.bandwidth import read_bandwidth
    from ktops_engine.plan import Prediction, predict

    if site.source.gguf.total_bytes < PREDICTED_BYTES or not site.placement.fits:
        return None
    rate = read_bandwidth(site.machine)
    machine = replace(site.machine, read_bandwidth=rate, bandwidth_is_measured=rate is not None)
    prediction = predict(site.placement, site.source.facts, machine)
    return prediction.decode_tokens_per_s if isinstance(prediction, Prediction) else None
