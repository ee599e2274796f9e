"""The plan as a stage: what goes where on this machine, what it is held against, how fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ktops.hub.catalogue import load_catalogue
from ktops.hub.choose import ModelChoice
from ktops.launch.dummy import DummyOrder, dummy_weights
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes
from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from ktops.planning.model_plan import ModelPlan
    from ktops_doctor import Target
    from ktops_engine.gguf import GgufModel
    from ktops_engine.machine import MachineFacts
    from ktops_engine.measured_speeds import MeasuredSpeeds
    from ktops_engine.plan import ModelFacts, Placement, Share

# Below this a prediction helps nobody, and measuring the memory takes longer than loading.
PREDICTED_BYTES = 1 << 30


@dataclass(frozen=True)
class Site:
    """A model whose files are here, and where it would lie on this machine, fitting or not."""

    choice: ModelChoice
    gguf: GgufModel
    facts: ModelFacts
    config: EngineConfig
    machine: MachineFacts
    placement: Placement

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.choice.name or str(self.choice.gguf_path)


def look(settings: Settings, choice: ModelChoice, dummy: DummyOrder | None = None) -> Site:
    """Open the headers of the files, read their configuration, and place the model, with random
    weights if `dummy` asks for them.

    Raises KtopsError for files that are not whole or not supported, and for settings that do not
    go with the model.
    """
    from ktops.planning.machines.live import with_gpu_rates
    from ktops_engine.expert_counts import known_use
    from ktops_engine.gpus import engine_machine
    from ktops_engine.plan import facts_of_files, place_served
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
    source = open_source(config)
    use, _ = known_use(config, source.gguf, source.config)  # loading says what is wrong with it
    facts = facts_of_files(source.gguf, source.config, use)
    machine = _with_thread_rates(with_gpu_rates(engine_machine()), config, facts)
    return Site(choice, source.gguf, facts, config, machine, place_served(config, facts, machine))


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

    size = site.gguf.total_bytes
    known = load_catalogue().get(site.name)
    return Target(
        name=site.name,
        title=known.title if known else site.name,
        weights_bytes=size,
        ram_bytes=site.placement.total_bytes,
        vram_bytes=site.placement.largest_vram_bytes,
        cores=known.needs.cores if known else 1,
        present_bytes=size,
        weights=str(site.choice.gguf_path),
        models_dir=str(site.gguf.paths[0].parent),
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
    return replace(target, ram_bytes=placement.total_bytes, vram_bytes=placement.largest_vram_bytes)


@dataclass(frozen=True)
class Expectation:
    """Tokens a second of one request: (low, high) as predicted, and what this machine gave with the
    same placement before. None: not known."""

    predicted: tuple[float, float] | None
    measured: float | None

    @classmethod
    def of(
        cls, predicted: tuple[float, float] | None, measured: MeasuredSpeeds | None
    ) -> Expectation:
        """From a prediction and from what was measured."""
        decode = measured and measured.decode
        return cls(predicted, decode.figure.tokens_per_s if decode else None)

    def parts(self) -> Iterator[Text]:
        """What is known, for one line."""
        measured = None if self.measured is None else f"{self.measured:.3g}"
        low, high = (f"{rate:.2g}" for rate in self.predicted or (0.0, 0.0))
        if self.predicted is None:
            if measured is not None:
                yield text("measured {measured} tok/s before", measured=measured)
        elif measured is None:
            yield text("expect {low} to {high} tok/s", low=low, high=high)
        else:
            yield text(
                "expect {low} to {high} tok/s, measured {measured} before",
                low=low,
                high=high,
                measured=measured,
            )


def show_site(output: Output, site: Site) -> None:
    """One line: what goes where, with how many threads, how fast it may be.

    Raises KtopsError "not-enough-memory", with the numbers.
    """
    from ktops_engine.measured_speeds import recalled_speeds
    from ktops_engine.plan import plan

    placement = plan(site.config, site.facts, site.machine)
    measured = recalled_speeds(placement, site.facts, site.machine)
    show_plan(output, placement, Expectation.of(_predict(site), measured))


def show_plan(output: Output, placement: Placement, expected: Expectation) -> None:
    """`placement` in one line."""
    for note in placement.notes:
        output.warn(note)
    output.stage("plan", joined([*plan_parts(placement), *expected.parts()]))
    output.event(
        "plan",
        threads=placement.num_threads,
        bytes=placement.total_bytes,
        available_bytes=placement.ram.usable_bytes,
        vram_bytes=placement.vram_bytes,
        gpu_layers=placement.gpu_layers,
        gpu_experts=placement.gpu_experts,
        expert_layers_by_gpu=list(placement.expert_layers_by_gpu),
        hot_experts=placement.hot_experts,
        hot_share=round(placement.hot_share, 4),
        ctx_size=placement.ctx_size,
        expected_tokens_per_s=expected.predicted and [round(r, 2) for r in expected.predicted],
        measured_tokens_per_s=expected.measured and round(expected.measured, 2),
    )


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


def plan_parts(placement: Placement) -> Iterator[Text]:
    """Where everything goes, for one line."""
    if placement.gpus:
        yield from _on_gpus(placement)
        yield text(
            "RAM: {total} (weights {weights})",
            total=format_bytes(placement.total_bytes),
            weights=format_bytes(placement.weights_bytes),
        )
    else:
        yield text(
            "CPU: {total} (weights {weights}, cache {cache} for {tokens} tokens)",
            total=format_bytes(placement.total_bytes),
            weights=format_bytes(placement.weights_bytes + placement.kv_up_bytes),
            cache=format_bytes(placement.kv_cache_bytes),
            tokens=placement.ctx_size,
        )
    yield text("{threads} threads", threads=placement.num_threads)


def _on_gpus(placement: Placement) -> Iterator[Text]:
    """The GPU, or each of several with the layers whose experts it holds."""
    from ktops_engine.plan import Part

    first, *further = placement.gpus
    cache = first.parts.get(Part.KV_CACHE, 0)
    parts = [text("{layers} layers", layers=placement.gpu_layers)]
    if further and placement.expert_layers_by_gpu[0]:
        parts.append(_experts_of(placement.expert_layers_by_gpu[0]))
    elif placement.gpu_experts and not further:
        parts.append(text("{experts} routed experts", experts=placement.gpu_experts))
    if placement.hot_experts:
        parts.append(
            text(
                "{experts} most used experts ({percent} % of reads)",
                experts=placement.hot_experts,
                percent=round(100 * placement.hot_share),
            )
        )
    parts.append(
        text(
            "cache {cache} for {tokens} tokens",
            cache=format_bytes(cache),
            tokens=placement.ctx_size,
        )
    )
    said = joined(parts)
    if not further:
        yield text("GPU: {total} ({parts})", total=format_bytes(first.total_bytes), parts=said)
        return
    yield _on_one_of_several(first, said)
    for share, layers in zip(further, placement.expert_layers_by_gpu[1:], strict=True):
        yield _on_one_of_several(share, _experts_of(layers))


def _on_one_of_several(share: Share, parts: Text) -> Text:
    return text(
        "GPU {index}: {total} ({parts})",
        index=share.gpu_index,
        total=format_bytes(share.total_bytes),
        parts=parts,
    )


def _experts_of(layers: int) -> Text:
    return text("routed experts of {layers} layers", layers=layers)


def _predict(site: Site) -> tuple[float, float] | None:
    """Tokens a second to expect; None for a small model, and where the memory's speed is not
    known."""
    from ktops_engine.bandwidth import read_bandwidth
    from ktops_engine.plan import Prediction, predict

    if site.gguf.total_bytes < PREDICTED_BYTES or not site.placement.fits:
        return None
    rate = read_bandwidth(site.machine)
    machine = replace(site.machine, read_bandwidth=rate, bandwidth_is_measured=rate is not None)
    prediction = predict(site.placement, site.facts, machine)
    return prediction.decode_tokens_per_s if isinstance(prediction, Prediction) else None
