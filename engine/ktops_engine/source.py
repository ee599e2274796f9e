"""What is to be loaded: the tensors and the configuration of a model, before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from ktops_engine.config import EngineConfig
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.expert_counts import known_use
from ktops_engine.gguf import GgufModel, TensorInfo, open_gguf
from ktops_engine.model_config import ModelConfig, resolve_model_config
from ktops_engine.plan import ExpertUse, ModelFacts, facts_of_files, tensors_q4_k_m
from ktops_engine.text import Text, text


@dataclass(frozen=True)
class ModelSource:
    """A model's tensors, configuration and known use of its experts (None: too little), and notes
    on where they are from.

    With dummy weights of a model whose files are not here, `gguf` has the paths and metadata (the
    tokenizer) of another one.
    """

    gguf: GgufModel
    config: ModelConfig
    use: ExpertUse | None
    notes: tuple[Text, ...]

    @cached_property
    def facts(self) -> ModelFacts:
        """What `plan` wants to know of the model."""
        return facts_of_files(self.gguf, self.config, self.use)


def open_source(config: EngineConfig) -> ModelSource:
    """Open and check what `config` names; no weights are read.

    Raises KtopsError as `open_gguf` and `resolve_model_config`, and invalid-num-hidden-layers
    (status 2).
    """
    gguf, dummy = open_gguf(config.gguf_path), config.dummy
    if dummy is None or dummy.described is None:
        model_config, notes = resolve_model_config(gguf, config.model_path)
    else:
        model_config, notes = dummy.described, []
        gguf = _with_tensors(gguf, _described_tensors(model_config))
        notes.append(text("text is read and written by the tokenizer of another model"))
    if dummy is not None:
        notes.append(text("the weights are random numbers: so is every answer"))
        gguf, model_config = _shortened(gguf, model_config, dummy.num_hidden_layers)
    use, remarks = known_use(config, gguf, model_config)
    return ModelSource(gguf, model_config, use, (*notes, *remarks))


def _shortened(
    gguf: GgufModel, config: ModelConfig, asked: int | None
) -> tuple[GgufModel, ModelConfig]:
    """The first layers of a model, as many as are asked for; None: all."""
    count = config.num_hidden_layers
    if asked is None:
        return gguf, config
    if not 1 <= asked <= count:
        raise KtopsError(
            "invalid-num-hidden-layers",
            text("--num-hidden-layers {asked}: this model has {count}", asked=asked, count=count),
            text("give a number from 1 to {count}", count=count),
            exit_status=EXIT_USAGE,
        )
    kept = (tensor for tensor in gguf.tensors.values() if _layer(tensor.name) < asked)
    num_dense = min(config.first_k_dense_replace, asked)
    config = replace(config, num_hidden_layers=asked, first_k_dense_replace=num_dense)
    return _with_tensors(gguf, kept), config


def _layer(name: str) -> int:
    """The number of the layer that a tensor belongs to, -1 for none."""
    kind, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if kind == "blk" else -1


def _described_tensors(config: ModelConfig) -> Iterable[TensorInfo]:
    """The tensors of a Q4_K_M file that is not here, as if it were empty."""
    for name, shape, type in tensors_q4_k_m(config):
        yield TensorInfo(name, shape, type, 0, 0, type.nbytes(math.prod(shape)))


def _with_tensors(gguf: GgufModel, tensors: Iterable[TensorInfo]) -> GgufModel:
    by_name = {tensor.name: tensor for tensor in tensors}
    total = sum(tensor.nbytes for tensor in by_name.values())
    return replace(gguf, tensors=MappingProxyType(by_name), total_bytes=total)
