"""A model on a machine with less RAM than it needs: layers of routed experts that share memory.

Decoding reads a few experts of every layer from RAM. Between two layers that lie in the same place
it reads as many others as are distinct; where these are many times the processors' caches, nothing
is found there, and a token takes as long as with memory for every layer. RAM in use is that of the
distinct layers, of course. All else is as it is at full size: the plan, GPU memory, the graph of a
token, attention, cache, handoffs, what prompts stream to the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

from ktops_engine import loader
from ktops_engine.config import EngineConfig
from ktops_engine.gguf import GgufModel, QuantType
from ktops_engine.machine import MachineFacts
from ktops_engine.models.weights import Weights
from ktops_engine.native.load import Native
from ktops_engine.plan import facts_of_files, plan
from ktops_engine.plan.sizes import gib
from ktops_engine.source import open_source

MATRICES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class SharedLayers:
    """`machine` is the one to load by: this one, if it had the RAM for every layer. `num_layers`
    layers of experts are in RAM, and `left_out_bytes` of them have no memory of their own."""

    machine: MachineFacts
    num_layers: int
    left_out_bytes: int


class SharedExperts(Weights):
    """Weights of which some tensors, those that `stand_ins` names, are others of their shape."""

    def __init__(
        self,
        native: Native,
        gguf: GgufModel,
        names: Iterable[str],
        *,
        stand_ins: Mapping[str, str],
    ) -> None:
        self._stand_ins = stand_ins
        super().__init__(native, gguf, [name for name in names if name not in stand_ins])

    def __contains__(self, name: str) -> bool:
        return super().__contains__(self._stand_ins.get(name, name))

    def matrix(self, name: str):
        return super().matrix(self._stand_ins.get(name, name))


@contextmanager
def layers_sharing_memory(
    config: EngineConfig, machine: MachineFacts, num_distinct: int
) -> Iterator[SharedLayers]:
    """Within, a model that is loaded as `config` says has memory for `num_distinct` of its layers
    of routed experts in RAM; those in GPU memory are all there.

    Raises ValueError for weights that are not random and a number of layers that there are not,
    MemoryError when there is no RAM for so many, and KtopsError as `plan`.
    """
    if config.dummy is None:
        raise ValueError("layers can share memory when their weights are random, not a model's own")
    source = open_source(config)
    roomy = replace(
        machine,
        total_ram_bytes=machine.total_ram_bytes + source.gguf.total_bytes,
        available_ram_bytes=machine.available_ram_bytes + source.gguf.total_bytes,
    )
    placement = plan(config, facts_of_files(source.gguf, source.config), roomy)
    first = source.config.first_k_dense_replace + placement.gpu_expert_layers
    layers = range(first, source.config.num_hidden_layers)
    if not 1 <= num_distinct <= len(layers):
        raise ValueError(
            f"{num_distinct} distinct layers: {len(layers)} layers of experts are in RAM"
        )
    stand_ins = choose_stand_ins(source.gguf, layers, num_distinct)
    left_out = sum(source.gguf.tensors[name].nbytes for name in stand_ins)
    needed = placement.total_bytes - left_out
    if needed > machine.available_ram_bytes:
        raise MemoryError(
            f"{num_distinct} distinct layers take {gib(needed)} GiB of RAM, and "
            f"{gib(machine.available_ram_bytes)} can be had"
        )
    with patch.object(loader, "Weights", partial(SharedExperts, stand_ins=stand_ins)):
        yield SharedLayers(roomy, len(layers), left_out)


def choose_stand_ins(gguf: GgufModel, layers: Sequence[int], num_distinct: int) -> dict[str, str]:
    """By name, the experts' tensors that get no memory of their own, and which ones they are
    instead: those of a layer whose matrices have the same types, each kind's in turn.

    Raises ValueError when there are more kinds of layers than `num_distinct`.
    """
    kinds: dict[tuple[QuantType, ...], list[int]] = {}
    for layer in layers:
        types = tuple(gguf.tensors[name].type for name in _names(layer))
        kinds.setdefault(types, []).append(layer)
    if num_distinct < len(kinds):
        raise ValueError(
            f"{num_distinct} distinct layers cannot stand for {len(kinds)} kinds of layers"
        )
    kept = dict.fromkeys(kinds, 1)
    for _ in range(num_distinct - len(kinds)):  # so that every kind has about its share
        kept[max(kinds, key=lambda kind: len(kinds[kind]) / kept[kind])] += 1
    return {
        name: stand_in
        for kind, members in kinds.items()
        for place, layer in enumerate(members)
        if place >= kept[kind]
        for name, stand_in in zip(_names(layer), _names(members[place % kept[kind]]), strict=True)
    }


def _names(layer: int) -> list[str]:
    return [f"blk.{layer}.{matrix}.weight" for matrix in MATRICES]
