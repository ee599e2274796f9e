"""The line that says a plan before a model is loaded: what goes where, and how fast it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktops.output import Output
from ktops.units import format_bytes
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from ktops_engine.measured_speeds import MeasuredSpeeds
    from ktops_engine.plan import Placement, Share


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


def show_plan(output: Output, placement: Placement, expected: Expectation) -> None:
    """`placement` in one line."""
    for note in placement.notes:
        output.warn(note)
    output.stage("plan", joined([*_plan_parts(placement), *expected.parts()]))
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


def _plan_parts(placement: Placement) -> Iterator[Text]:
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
