"""The weights that a model on GPU and CPU is made over: where each lies, and which lie twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.models.gpu_weights import GpuWeights
from ktops_engine.models.weights import Weights
from ktops_engine.moe.hot_experts import LayerMatrices


@dataclass(frozen=True)
class HybridWeights:
    """A tensor is `in_ram` or `on_gpu`; of the `hot` experts, by layer, the GPU is to have copies
    of what is in RAM."""

    in_ram: Weights
    on_gpu: GpuWeights
    hot: Mapping[int, Sequence[int]]

    def experts_in_ram(self, layers: Iterable[int]) -> dict[int, LayerMatrices]:
        """Gate, up and down of the routed experts of those `layers` that have them in RAM."""
        in_ram = self.in_ram
        return {
            layer: (in_ram.matrix(gate), in_ram.matrix(up), in_ram.matrix(down))
            for layer in layers
            for gate, up, down in [feed_forward_names(layer, "_exps")]
            if gate in in_ram
        }

    def experts_on_gpu(self, layer: int) -> ExpertMatrices:
        """Those of a layer that has them on a GPU."""
        return ExpertMatrices(*map(self.on_gpu.matrix, feed_forward_names(layer, "_exps")))


def feed_forward_names(layer: int, suffix: str) -> tuple[str, str, str]:
    """Gate, up and down of a layer's feed-forward: "" of a dense one, "_exps", "_shexp"."""
    block = f"blk.{layer}.ffn_"
    return f"{block}gate{suffix}.weight", f"{block}up{suffix}.weight", f"{block}down{suffix}.weight"
