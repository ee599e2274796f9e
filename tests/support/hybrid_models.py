"""The hybrid model on any device: compiled on a GPU, interpreted on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import numpy as np
import torch

from ktops_engine.config import EngineConfig
from ktops_engine.gguf import GgufModel, QuantType
from ktops_engine.gpu_runner import GpuRunner
from ktops_engine.kv_cache import LatentCache
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2 import is_in_tail, stays_in_ram, wanted_tensors
from ktops_engine.models.deepseek2_gpu import HybridModel
from ktops_engine.models.hybrid import build_hybrid, load_gpu_weights
from ktops_engine.models.hybrid_weights import HybridWeights
from ktops_engine.models.weights import Weights
from ktops_engine.native.build import BuildInfo
from ktops_engine.native.load import load_native
from ktops_engine.sampler import Sampler
from ktops_engine.source import open_source
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

CONTEXT = 512
# Types of weights whose kernels are the quickest to interpret.
PLAIN = {
    "": QuantType.BF16,
    **{f"ffn_{name}_exps": QuantType.Q8_0 for name in ("gate", "up", "down")},
}


@contextmanager
def hybrid_model(
    config: EngineConfig,
    info: BuildInfo,
    device: str,
    resident_layers: Iterable[int] = (),
    further_gpu_layers: Mapping[int, str] = MappingProxyType({}),
    hot: Mapping[int, Sequence[int]] = MappingProxyType({}),
    gpu_layers: int | None = None,
) -> Iterator[tuple[HybridModel, ModelConfig, GgufModel]]:
    """A model with all that every token uses on `device`, and the routed experts of
    `resident_layers`; those of `further_gpu_layers` on the devices it gives; and copies of the
    `hot` experts by layer. With `gpu_layers` only the first ones are on the device, and the CPU has
    the others and the head."""
    experts = {layer: torch.device(device) for layer in resident_layers}
    experts |= {layer: torch.device(other) for layer, other in further_gpu_layers.items()}
    source = open_source(config)
    gguf, model_config = source.gguf, source.config
    native = load_native(info)
    names, _ = wanted_tensors(gguf, model_config)
    with ExitStack() as resources:
        pool = resources.enter_context(native.create_pool(sorted(os.sched_getaffinity(0))[:2]))

        def fill(weights: Weights) -> None:
            weights.read(pool, lambda num_bytes: None)

        def is_by_cpu(name: str) -> bool:
            return gpu_layers is not None and is_in_tail(name, gpu_layers, gpu_head=False)

        on_gpu = load_gpu_weights(
            native,
            gguf,
            [name for name in names if not is_by_cpu(name)],
            fill,
            torch.device(device),
            experts,
        )
        in_ram = Weights(
            native,
            gguf,
            [name for name in names if is_by_cpu(name) or stays_in_ram(name, experts)],
        )
        resources.callback(in_ram.free)
        fill(in_ram)
        yield (
            build_hybrid(
                HybridWeights(in_ram, on_gpu, hot), model_config, CONTEXT, pool, resources, print
            ),
            model_config,
            gguf,
        )


def new_runner(model: HybridModel, config: ModelConfig, num_blocks: int = 8) -> GpuRunner:
    """A runner over an empty cache."""
    width = config.kv_lora_rank + config.qk_rope_head_dim
    cache = LatentCache(
        config.num_hidden_layers,
        num_blocks,
        64,
        width,
        *model.cache_kind,
        tail_layers=0 if model.tail is None else model.tail.num_layers,
    )
    return GpuRunner(model, cache, Sampler([]), num_threads=2)


def prompt(config: ModelConfig, length: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return rng.integers(3, config.vocab_size - 20, size=length).tolist()


def logits(
    runner: GpuRunner, token_ids: list[int], spans: list[int], blocks: Sequence[int] = (3, 1, 5)
) -> torch.Tensor:
    """Logits of every position, computed in steps of the given sizes."""
    request = Request("r", token_ids, SamplingParams(), block_table=list(blocks))
    rows, start = [], 0
    for size in spans:
        rows.append(runner.logits(Batch((BatchItem(request, start, size, samples=True),))))
        start += size
    return torch.cat(rows)


def middle_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative L2 of a position's logits, in the middle of all."""
    errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return float(errors.median())
