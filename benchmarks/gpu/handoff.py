"""What it costs a layer that its experts are asked for and awaited inside a graph."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from gpu.timing import Figure, event_seconds, graph_seconds
from gpu.weights import activations, native
from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import SHAPES
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.handoff import Handoff
from ktops_engine.native.handoff import Layer

LAYERS = 58  # of R1 with experts
TURNS = 30
EXPERTS = 40  # 1.1 GB, more than any cache
GAP_TOKENS = 4096  # of a product that takes the GPU about as long as what is between two layers


def figures() -> Iterator[Figure]:
    """With one thread and no expert to compute; and beside whole layers, with all threads."""
    cpus = sorted(os.sched_getaffinity(0))
    shape = replace(SHAPES["r1"], num_experts=EXPERTS)
    with native().create_pool(cpus) as pool, ExpertLayer(native(), pool, shape) as layer:
        with native().create_pool(cpus[:1]) as single:
            for tokens in (1, 4, 16):
                yield _empty(Handoff(native(), single, [_matrices(layer)], 7168, 8, _gpu()), tokens)
        yield _beside(Handoff(native(), pool, [_matrices(layer)], 7168, 8, _gpu()), len(cpus))


def _gpu() -> torch.device:
    return torch.device("cuda")


def _matrices(layer: ExpertLayer) -> Layer:
    return layer.gate, layer.up, layer.down


def _captured(body: Callable[[int], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            body(layer)
    return graph


def _request(handoff: Handoff, ids: torch.Tensor) -> Callable[[int], None]:
    """Post and take, by number of the layer; kernels compiled. ids: [LAYERS, tokens, 8] int32."""
    tokens = ids.shape[1]
    x, residual = activations(tokens, 7168), torch.zeros(tokens, 7168, device="cuda")
    weights = torch.full((tokens, 8), 0.1, device="cuda")

    def request(layer: int) -> None:
        handoff.post(0, Routing(x, ids[layer], weights))
        handoff.take(residual)

    handoff.post(0, Routing(x, ids[0], weights))
    handoff.serve(1)
    handoff.take(residual)
    torch.cuda.synchronize()
    return request


def _empty(handoff: Handoff, tokens: int) -> Figure:
    nobody = torch.full((LAYERS, tokens, 8), -1, dtype=torch.int32, device="cuda")
    graph = _captured(_request(handoff, nobody))
    times = [event_seconds(graph.replay, lambda: handoff.serve(LAYERS)) for _ in range(TURNS)]
    handoff.check()
    seconds = statistics.median(times) / LAYERS
    return Figure("handoff", "one thread, no expert to compute", tokens, seconds)


def _beside(handoff: Handoff, num_threads: int) -> Figure:
    """The whole, less the CPU's computing and what the GPU does in between."""
    big = activations(GAP_TOKENS, GAP_TOKENS)
    ids = torch.zeros(LAYERS, 1, 8, dtype=torch.int32, device="cuda")
    request = _request(handoff, ids)

    def step(layer: int) -> None:
        torch.mm(big, big)
        request(layer)

    gap = graph_seconds([lambda: torch.mm(big, big)] * LAYERS)  # first: torch's libraries start
    graph = _captured(step)
    costs = []
    for _ in range(TURNS // 3):
        ids.copy_(torch.rand(LAYERS, 1, EXPERTS, device="cuda").argsort(-1)[..., :8])
        torch.cuda.synchronize()
        before = handoff.traffic.seconds
        whole = event_seconds(graph.replay, lambda: handoff.serve(LAYERS))
        costs.append(whole / LAYERS - (handoff.traffic.seconds - before) / LAYERS - gap)
    handoff.check()
    name = f"{num_threads} threads, beside an R1 layer"
    return Figure("handoff", name, 1, statistics.median(costs))
