"""From files to a model in memory: check, plan, read, build; all given back when a stage fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.expert_counts import counts_shape, path_for
from ktops_engine.gguf import GgufModel
from ktops_engine.gpu_memory import cuda_uuids, load_within
from ktops_engine.gpus import check_order, count_as_nvidia_smi, engine_machine
from ktops_engine.kv_cache import LatentCache
from ktops_engine.machine import MachineFacts
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2 import (
    Deepseek2Model,
    is_in_tail,
    stays_in_ram,
    wanted_tensors,
)
from ktops_engine.models.random_rows import RandomRows
from ktops_engine.models.weights import Weights
from ktops_engine.native.build import BuildInfo, find_current
from ktops_engine.native.load import Native, Pool, load_native
from ktops_engine.node_memory import NodeShare
from ktops_engine.nodes import thread_nodes
from ktops_engine.plan import ExpertUse, Placement, choose_hot, plan
from ktops_engine.runner import CpuRunner, Runner
from ktops_engine.sampler import Sampler
from ktops_engine.source import ModelSource, open_source
from ktops_engine.text import text
from ktops_engine.tokenizer import Tokenizer, load_tokenizer
from ktops_engine.types import LoadProgress

if TYPE_CHECKING:
    from ktops_engine.models.deepseek2_gpu import HybridModel

OnProgress = Callable[[LoadProgress], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to compute, and what is known about it; `node_shares` of its weights are empty
    when they are not shared out over NUMA nodes. `expert_counts` is the file that keeps how often
    its experts are chosen, None where nothing does."""

    gguf: GgufModel
    config: ModelConfig
    placement: Placement
    machine: MachineFacts
    tokenizer: Tokenizer
    library: BuildInfo
    native: Native
    model: Deepseek2Model | HybridModel
    node_shares: tuple[NodeShare, ...]
    resources: ExitStack
    expert_counts: Path | None = None

    def new_cache(self) -> LatentCache:
        """An empty latent cache of the size that the plan gives, where the model computes."""
        config, placement = self.config, self.placement
        return LatentCache(
            config.num_hidden_layers,
            placement.num_blocks,
            placement.block_size,
            config.kv_lora_rank + config.qk_rope_head_dim,
            *self.model.cache_kind,
            tail_layers=config.num_hidden_layers - placement.gpu_layers
            if placement.is_hybrid
            else 0,
        )

    def new_runner(self, sampler: Sampler) -> Runner:
        """What runs batches through the model, over a cache of its own.

        Raises KtopsError "gpu-out-of-memory".
        """
        return load_within(self.placement, partial(self._new_runner, sampler))

    def _new_runner(self, sampler: Sampler) -> Runner:
        if isinstance(self.model, Deepseek2Model):
            return CpuRunner(self.model, self.new_cache(), sampler, self.placement.num_threads)
        from ktops_engine.gpu_runner import GpuRunner
        from ktops_engine.kept_counts import CountKeeper

        keeper = None
        if self.expert_counts is not None:
            num_layers, _ = counts_shape(self.config)
            keeper = CountKeeper(self.model.expert_counts, num_layers, self.expert_counts)
            self.resources.callback(keeper.close)
        num_threads = self.placement.num_threads
        runner = GpuRunner(self.model, self.new_cache(), sampler, num_threads, keeper)
        runner.warm_up(self.placement.prefill_chunk)
        return runner

    def free(self) -> None:
        """End the threads and free the weights; the model cannot compute any more."""
        self.resources.close()


def load_model(
    config: EngineConfig,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    machine: MachineFacts | None = None,
    source: ModelSource | None = None,
) -> LoadedModel:
    """Load what `config` names. See `LLM.load` for the rest and the errors."""
    on_note = on_note or (lambda note: None)
    on_progress = on_progress or (lambda progress: None)
    source = source or open_source(config)
    gguf, model_config, notes = source.gguf, source.config, list(source.notes)
    count_as_nvidia_smi()
    machine = machine or engine_machine()
    placement = plan(config, source.facts, machine)
    if placement.is_hybrid:
        check_order([gpu.uuid for gpu in machine.gpus], cuda_uuids())
    names, left_out = wanted_tensors(gguf, model_config)
    if left_out:
        said = text("{count} tensors for multi-token prediction are left out", count=len(left_out))
        notes.append(said)
    for note in (*notes, *placement.notes):
        on_note(note)
    hot = _hot_experts(model_config, placement, source.use)
    load = partial(
        _load, config, gguf, model_config, placement, machine, names, hot, on_progress, on_note
    )
    return load_within(placement, load)


def _load(
    config: EngineConfig,
    gguf: GgufModel,
    model_config: ModelConfig,
    placement: Placement,
    machine: MachineFacts,
    names: list[str],
    hot: Mapping[int, Sequence[int]],
    on_progress: OnProgress,
    on_note: OnNote,
) -> LoadedModel:
    """Load the tensors `names` as `placement` has them, and copies of the experts `hot` of layers.
    Raises torch.OutOfMemoryError too."""
    tokenizer = load_tokenizer(gguf, config.model_path)
    info = _current_library()
    native = load_native(info)
    nodes = thread_nodes(config.numa, placement.cpus, is_built=info.numa)
    with ExitStack() as resources:
        pool = native.create_pool(placement.cpus, nodes)
        resources.callback(pool.close)
        total_bytes = sum(gguf.tensors[name].nbytes for name in names)
        fill = _filler(config, pool, total_bytes, on_progress)
        resident = _expert_devices(placement, model_config.first_k_dense_replace)
        is_by_cpu = partial(
            is_in_tail, gpu_layers=placement.gpu_layers, gpu_head=placement.gpu_head
        )
        in_ram = [name for name in names if is_by_cpu(name) or stays_in_ram(name, resident)]
        if placement.is_hybrid:
            from ktops_engine.models.hybrid import load_gpu_weights  # Triton and CUDA

            # First, because the GPU's memory is what others may have taken meanwhile.
            gpu = torch.device("cuda", 0)
            gpu_names = [name for name in names if not is_by_cpu(name)]
            on_gpu = load_gpu_weights(native, gguf, gpu_names, fill, gpu, resident)
        weights = Weights(native, gguf, in_ram)
        resources.callback(weights.free)
        _place(weights, pool, on_progress, on_note)
        fill(weights)
        shares = weights.node_shares(pool)
        model: Deepseek2Model | HybridModel
        if placement.is_hybrid:
            from ktops_engine.models.hybrid import build_hybrid
            from ktops_engine.models.hybrid_weights import HybridWeights

            placed = HybridWeights(weights, on_gpu, hot)
            size = placement.ctx_size
            model = build_hybrid(placed, model_config, size, pool, resources, on_note)
        else:
            model = Deepseek2Model(weights, model_config, pool, placement.ctx_size)
        return LoadedModel(
            gguf, model_config, placement, machine, tokenizer, info, native, model, shares,
            resources.pop_all(), path_for(config, gguf),
        )  # fmt: skip


def _expert_devices(placement: Placement, first_layer: int) -> dict[int, torch.device]:
    """The GPU of every layer whose routed experts are on one; `first_layer` is the first that has
    any."""
    indices = [
        share.gpu_index
        for share, count in zip(placement.gpus, placement.expert_layers_by_gpu, strict=True)
        for _ in range(count)
    ]
    return {layer: torch.device("cuda", index) for layer, index in enumerate(indices, first_layer)}


def _hot_experts(
    config: ModelConfig, placement: Placement, use: ExpertUse | None
) -> dict[int, Sequence[int]]:
    """The experts to copy to the first GPU, by layer."""
    if use is None or not placement.hot_experts:
        return {}
    chosen = choose_hot(use, placement.hot_experts, placement.gpu_expert_layers)
    return dict(enumerate(chosen, start=config.first_k_dense_replace))


def _place(weights: Weights, pool: Pool, on_progress: OnProgress, on_note: OnNote) -> None:
    """Give the pages of weights their NUMA nodes before anything is read."""
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(LoadProgress("place", done, weights.num_bytes))

    if refusal := weights.place(pool, count):
        on_note(
            text(
                "the kernel does not let this process choose NUMA nodes ({reason}): weights "
                "go where the threads that touch them run",
                reason=os.strerror(refusal),
            )
        )


def _filler(
    config: EngineConfig, pool: Pool, total_bytes: int, on_progress: OnProgress
) -> Callable[[Weights], None]:
    """What gives weights their values, and tells how far along all of them are."""
    is_read = config.dummy is None
    random = RandomRows()
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(LoadProgress("read" if is_read else "fill", done, total_bytes))

    def fill(weights: Weights) -> None:
        if is_read:
            weights.read(pool, count)
        else:
            weights.fill(pool, random, count)

    return fill


def _current_library() -> BuildInfo:
    info = find_current()
    if info is None:
        raise KtopsError(
            "native-missing",
            text("the native kernels are not built, or were built from other sources"),
            "ktops build",
        )
    return info
