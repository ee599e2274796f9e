"""What is to be loaded: the tensors and the configuration of a model, before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

from ktops_engine.config import DummyWeights, EngineConfig
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.gguf import GgufModel, TensorInfo, open_gguf
from ktops_engine.model_config import ModelConfig, resolve_model_config
from ktops_engine.plan import tensors_q4_k_m
from ktops_engine.text import Text, text


@dataclass(frozen=True)
class ModelSource:
    """A model's tensors and configuration, and notes on where they are from.

    With dummy weights of a model whose files are not here, `gguf` has the paths and metadata (the
    tokenizer) of another one.
    """

    gguf: GgufModel
    config: ModelConfig
    notes: tuple[Text, ...]


def open_source(config: EngineConfig) -> ModelSource:
    """Open and check what `config` names; no weights are read.

    Raises KtopsError as `open_gguf` and `resolve_model_config`, and invalid-num-hidden-layers
    (status 2).
    """
    gguf = open_gguf(config.gguf_path)
    if config.dummy is None:
        model_config, notes = resolve_model_config(gguf, config.model_path)
        return ModelSource(gguf, model_config, tuple(notes))
    if config.dummy.described is None:
        model_config, notes = resolve_model_config(gguf, config.model_path)
    else:
        model_config, notes = config.dummy.described, []
        gguf = _with_tensors(gguf, _described_tensors(model_config))
        notes.append(text("text is read and written by the tokenizer of another model"))
    notes.append(text("the weights are random numbers: so is every answer"))
    return _shortened(ModelSource(gguf, model_config, tuple(notes)), config.dummy)


def _shortened(source: ModelSource, dummy: DummyWeights) -> ModelSource:
    """The first layers of a model, as many as are asked for."""
    count, asked = source.config.num_hidden_layers, dummy.num_hidden_layers
    if asked is None:
        return source
    if not 1 <= asked <= count:
        raise KtopsError(
            "invalid-num-hidden-layers",
            text("--num-hidden-layers {asked}: this model has {count}", asked=asked, count=count),
            text("give a number from 1 to {count}", count=count),
            exit_status=EXIT_USAGE,
        )
    kept = (tensor for tensor in source.gguf.tensors.values() if _layer(tensor.name) < asked)
    config = replace(
        source.config,
        num_hidden_layers=asked,
        first_k_dense_replace=min(source.config.first_k_dense_replace, asked),
    )
    return ModelSource(_with_tensors(source.gguf, kept), config, source.notes)


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
