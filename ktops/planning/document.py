"""Plans for programs; schemas/plan.json describes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from ktops.planning.model_plan import ModelPlan, Outcome
from ktops.planning.speeds import Speed
from ktops_engine.measured_speeds import Measured
from ktops_engine.plan import Prediction, Share


@dataclass(frozen=True)
class Column:
    """A plan and the short name of its machine."""

    label: str
    plan: ModelPlan


def plan_document(column: Column) -> dict[str, object]:
    """The plan for one machine."""
    plan = column.plan
    return {
        "machine": _machine_document(column),
        "fits": plan.fits,
        **_outcome_document(plan.planned),
        "largest_ctx_size": plan.largest_ctx,
        "served": None if plan.served is plan.planned else _outcome_document(plan.served),
        "all_gpu_memory": None if plan.spare_gpu is None else _outcome_document(plan.spare_gpu),
        "changes": [str(change) for change in plan.changes],
    }


def model_document(plan: ModelPlan) -> dict[str, object]:
    """The model of a plan."""
    weights = plan.facts.bytes
    return {
        "name": plan.name,
        "title": plan.title,
        "source": plan.facts.source,
        "weights_bytes": weights.total,
        "parts": {part.value: size for part, size in weights.by_part().items()},
    }


def _machine_document(column: Column) -> dict[str, object]:
    machine = column.plan.machine
    return {
        "label": column.label,
        "name": machine.name,
        "cores": len(machine.cpus),
        "isa": machine.isa,
        "nodes": machine.num_nodes,
        "ram_bytes": machine.total_ram_bytes,
        "available_ram_bytes": machine.available_ram_bytes,
        "read_bandwidth": machine.read_bandwidth,
        "bandwidth_is_measured": machine.bandwidth_is_measured,
        "gpus": [
            {
                "name": gpu.name,
                "vram_bytes": gpu.total_bytes,
                "free_vram_bytes": gpu.free_bytes,
                "read_bandwidth": gpu.read_bandwidth,
                "pcie_bandwidth": gpu.pcie_bandwidth,
                "bf16_flops": gpu.bf16_flops,
            }
            for gpu in machine.gpus
        ],
    }


def _outcome_document(outcome: Outcome) -> dict[str, object]:
    placement, prediction = outcome.placement, outcome.prediction
    known = prediction if isinstance(prediction, Prediction) else None
    return {
        "missing_ram_bytes": outcome.lack.missing_bytes if outcome.lack else 0,
        "placement": {
            "devices": [_share_document(share) for share in (placement.ram, *placement.gpus)],
            "threads": placement.num_threads,
            "ctx_size": placement.ctx_size,
            "prefill_chunk": placement.prefill_chunk,
            "gpu_layers": placement.gpu_layers,
            "gpu_head": placement.gpu_head,
            "gpu_experts": placement.gpu_experts,
            "gpu_expert_layers": placement.gpu_expert_layers,
            "expert_layers_by_gpu": list(placement.expert_layers_by_gpu),
            "hot_experts": placement.hot_experts,
            "hot_share": placement.hot_share,
            "notes": [str(note) for note in placement.notes],
        },
        "prediction": known
        and {
            "decode_tokens_per_s": list(known.decode_tokens_per_s),
            "prefill_tokens_per_s": list(known.prefill_tokens_per_s),
            "limited_by": known.limited_by.value,
            "prefill_limited_by": known.prefill_limited_by.value,
            "prompts": [
                {
                    "num_tokens": prompt.num_tokens,
                    "tokens_per_s": list(prompt.tokens_per_s),
                    "limited_by": prompt.limited_by.value,
                }
                for prompt in known.prompts
            ],
        },
        "unknown_rates": [resource.value for resource in getattr(prediction, "resources", ())],
        "measured": outcome.measured
        and {
            "is_random": outcome.measured.is_random,
            "speeds": [
                _speed_document(speed, speed.measured)
                for speed in outcome.speeds
                if speed.measured is not None
            ],
        },
    }


def _speed_document(speed: Speed, measured: Measured) -> dict[str, object]:
    figure = measured.figure
    return {
        "prompt_tokens": speed.prompt_tokens,
        "tokens_per_s": figure.tokens_per_s,
        "num_tokens": figure.num_tokens,
        "measured_at": datetime.fromtimestamp(measured.at, UTC).isoformat("T", "seconds"),
        "predicted_tokens_per_s": speed.predicted and list(speed.predicted),
        "falls_short": speed.falls_short,
    }


def _share_document(share: Share) -> dict[str, object]:
    return {
        "device": share.device,
        "usable_bytes": share.usable_bytes,
        "total_bytes": share.total_bytes,
        "weights_bytes": share.weights_bytes,
        "parts": {part.value: size for part, size in share.parts.items()},
    }
