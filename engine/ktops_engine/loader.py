"""From files to a model in memory: check, plan, read, build; all given back when a stage fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.kv_cache import LatentCache
from ktops_engine.machine import detect_machine, engine_machine
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2 import Deepseek2Model, wanted_tensors
from ktops_engine.models.weights import Weights
from ktops_engine.native.build import BuildInfo, find_current
from ktops_engine.native.load import Native, load_native
from ktops_engine.plan import Placement, facts_of_files, plan
from ktops_engine.source import open_source
from ktops_engine.text import text
from ktops_engine.tokenizer import Tokenizer, load_tokenizer
from ktops_engine.types import LoadProgress

OnProgress = Callable[[LoadProgress], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to compute, and what is known about it."""

    gguf: GgufModel
    config: ModelConfig
    placement: Placement
    tokenizer: Tokenizer
    native: Native
    model: Deepseek2Model
    resources: ExitStack

    def new_cache(self) -> LatentCache:
        """An empty latent cache of the size that the plan gives."""
        return LatentCache(
            self.config.num_hidden_layers,
            self.placement.num_blocks,
            self.placement.block_size,
            self.config.kv_lora_rank + self.config.qk_rope_head_dim,
        )

    def free(self) -> None:
        """End the threads and free the weights; the model cannot compute any more."""
        self.resources.close()


def load_model(
    config: EngineConfig, on_progress: OnProgress | None = None, on_note: OnNote | None = None
) -> LoadedModel:
    """Load what `config` names. See `LLM.load` for the callbacks and the errors."""
    on_note = on_note or (lambda note: None)
    source = open_source(config)
    gguf, model_config, notes = source.gguf, source.config, list(source.notes)
    facts = facts_of_files(gguf, model_config)
    placement = plan(config, facts, engine_machine(detect_machine()))
    names, left_out = wanted_tensors(gguf, model_config)
    if left_out:
        said = text("{count} tensors for multi-token prediction are left out", count=len(left_out))
        notes.append(said)
    for note in (*notes, *placement.notes):
        on_note(note)
    tokenizer = load_tokenizer(gguf, config.model_path)
    native = load_native(_current_library())
    with ExitStack() as resources:
        pool = native.create_pool(placement.cpus)
        resources.callback(pool.close)
        weights = Weights(native, gguf, names)
        resources.callback(weights.free)
        load = weights.read if config.dummy is None else weights.fill
        load(pool, on_progress or (lambda progress: None))
        model = Deepseek2Model(weights, model_config, pool, placement.ctx_size)
        return LoadedModel(
            gguf, model_config, placement, tokenizer, native, model, resources.pop_all()
        )


def _current_library() -> BuildInfo:
    info = find_current()
    if info is None:
        raise KtopsError(
            "native-missing",
            text("the native kernels are not built, or were built from other sources"),
            "ktops build",
        )
    return info
