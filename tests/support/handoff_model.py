"""A few layers of random experts on the CPU, and steps that ask for them from a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import QuantType
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.handoff import Handoff
from ktops_engine.native.build import build_native
from ktops_engine.native.load import Matrix, Native, Pool, load_native

HIDDEN, INNER, NUM_EXPERTS, TOP_K, NUM_LAYERS = 608, 64, 8, 2, 3


def random_request(num_tokens: int, seed: int) -> Routing:
    """Activations, expert ids (some negative) and weights, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, HIDDEN, generator=generator).bfloat16()
    ids = torch.randint(
        -1, NUM_EXPERTS, (num_tokens, TOP_K), generator=generator, dtype=torch.int32
    )
    return Routing(x, ids, torch.rand(num_tokens, TOP_K, generator=generator))


class Model:
    """Layers of Q8_0 experts and their handoff."""

    def __init__(self, native: Native, pool: Pool, device: torch.device) -> None:
        self.pool, self.device = pool, device
        self._weights: list[np.ndarray] = []
        rng = np.random.default_rng(20261122)
        self.layers = [
            (
                self._matrix(rng, INNER, HIDDEN),
                self._matrix(rng, INNER, HIDDEN),
                self._matrix(rng, HIDDEN, INNER),
            )
            for _ in range(NUM_LAYERS)
        ]
        self.expert_bytes = 3 * INNER * HIDDEN // 32 * 34
        self.handoff = Handoff(native, pool, self.layers, HIDDEN, TOP_K, device)

    def _matrix(self, rng: np.random.Generator, rows: int, cols: int) -> Matrix:
        blocks = rng.integers(0, 256, (NUM_EXPERTS * rows * cols // 32, 34), dtype=np.uint8)
        blocks[:, :2] = rng.uniform(2e-4, 4e-4, (len(blocks), 1)).astype(np.float16).view(np.uint8)
        self._weights.append(blocks)
        return Matrix(blocks.ctypes.data, QuantType.Q8_0, rows, cols, NUM_EXPERTS)

    def captured_step(self, num_layers: int, num_tokens: int) -> Step:
        """A graph of so many layers with these tokens."""
        return Step.capture(self, num_layers, num_tokens)


def direct(model: Model, layer: int, x: torch.Tensor, ids: torch.Tensor, w: torch.Tensor):
    """What the pool computes of them: [tokens, HIDDEN] float32."""
    y = torch.full(x.shape, torch.nan)
    model.pool.moe_forward(
        *model.layers[layer],
        *(x.data_ptr(), ids.data_ptr(), w.data_ptr(), y.data_ptr()),
        *ids.shape,
    )
    return y


@dataclasses.dataclass
class Step:
    """residual = initial; for each layer residual += experts(bfloat16(residual))."""

    model: Model
    num_layers: int
    ids: torch.Tensor
    weights: torch.Tensor
    initial: torch.Tensor
    residual: torch.Tensor
    graph: torch.cuda.CUDAGraph

    @classmethod
    def capture(cls, model: Model, num_layers: int, num_tokens: int) -> Step:
        x, ids, weights = random_request(num_tokens, 0)
        initial = x.float().to(model.device)
        graph = torch.cuda.CUDAGraph()
        step = cls(
            model, num_layers, ids.to(model.device), weights.to(model.device),
            initial, torch.empty_like(initial), graph,
        )  # fmt: skip
        step.launch(1)  # compiles
        model.handoff.serve(1)
        with torch.cuda.graph(graph):
            step.launch(num_layers)
        return step

    def launch(self, num_layers: int) -> None:
        self.residual.copy_(self.initial)
        for layer in range(num_layers):
            routing = Routing(self.residual.bfloat16(), self.ids, self.weights)
            self.model.handoff.post(layer % NUM_LAYERS, routing)
            self.model.handoff.take(self.residual)

    def run(self) -> None:
        self.graph.replay()
        self.model.handoff.serve(self.num_layers)
        torch.cuda.synchronize()
        self.model.handoff.check()

    def expected(self, residual: torch.Tensor) -> torch.Tensor:
        ids, weights = self.ids.cpu(), self.weights.cpu()
        for layer in range(self.num_layers):
            x = residual.bfloat16().float()
            residual = residual + direct(self.model, layer % NUM_LAYERS, x, ids, weights)
        return residual


def say(line: str) -> None:
    """A line for the test, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Steps in a process of its own. "stop": stops itself before it serves the second one. "hang":
    does not serve the second one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library", type=Path)
    parser.add_argument("what", choices=["stop", "hang"])
    parser.add_argument("patience", type=float)
    chosen = parser.parse_args()
    native = load_native(dataclasses.replace(build_native(), path=chosen.library))
    with native.create_pool([0, 1]) as pool:
        model = Model(native, pool, torch.device("cuda"))
        model.handoff.set_patience(chosen.patience)
        step = model.captured_step(num_layers=20, num_tokens=1)
        step.run()
        step.graph.replay()
        if chosen.what == "hang":
            say("hanging")
            torch.cuda.synchronize()
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            model.handoff.serve(20)
        except KtopsError as error:
            say(error.code)
        model.handoff.reset()
        step.run()
        say("the next one works")
