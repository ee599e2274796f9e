"""Copies of the most used experts in GPU memory: what they save a decode, for some numbers of them.

    python benchmarks/hot_experts.py --num-hidden-layers 5 --experts 64 256

Random weights at a model's true shapes. The first run counts which experts are chosen, the others
use what it counted. How skewed a random router is says nothing of a trained one: tokens a second
belong to the share of reads that is printed beside them. Also what counting costs a layer.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from answer_times import answer_times

ROUTES = 100  # launches in a graph
# Drawn, not greedy: that ends in a loop of few tokens, and of few experts.
drawn_times = partial(answer_times, temperature=1)
SKEWS = (0.01, 0.05, 0.1, 0.2, 0.5)


def timed_graph(launch) -> float:
    """Microseconds of one of ROUTES launches in a graph."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(ROUTES):
            launch()
    seconds = []
    for _ in range(20):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        seconds.append(began.elapsed_time(ended))
    return 1e3 * statistics.median(seconds) / ROUTES


def cost_of_counting(model) -> None:
    """The router's choice with and without counts, microseconds a layer."""
    from ktops_engine.kernels.router import route

    bias = torch.randn(model.n_routed_experts, device="cuda") * 0.1
    counts = torch.zeros(model.n_routed_experts, dtype=torch.int32, device="cuda")
    for tokens in (1, 16):
        logits = torch.randn(tokens, model.n_routed_experts, device="cuda")
        without = timed_graph(partial(route, logits, bias, model))
        counting = timed_graph(partial(route, logits, bias, model, counts=counts))
        print(f"choice for {tokens:2} tokens: {without:.2f} us, with counts {counting:.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="r1-q4km")
    parser.add_argument("--num-hidden-layers", type=int)
    parser.add_argument("--experts", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--tokens", type=int, default=160, help="of each of 8 answers")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--cpu-infer", type=int)
    args = parser.parse_args()

    from ktops.hub.catalogue import find_entry
    from ktops.planning.model_facts import described_facts
    from ktops_engine import LLM, EngineConfig
    from ktops_engine.config import DummyWeights
    from ktops_engine.demo import demo_path
    from ktops_engine.expert_counts import counts_shape, known_use
    from ktops_engine.gguf import open_gguf

    described = described_facts(find_entry(args.model)).config
    cost_of_counting(described)
    draw = random.Random(0)
    whole = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npy"
        for num_experts in (0, *args.experts):
            config = EngineConfig(
                demo_path(),
                cpu_infer=args.cpu_infer,
                dummy=DummyWeights(described, args.num_hidden_layers),
                gpu_experts=num_experts,
                expert_counts=path,
            )
            llm = LLM.load(config, on_note=print)
            vocabulary = range(3, llm.tokenizer.vocab_size)

            def prompt(count: int, vocabulary: range = vocabulary) -> list[int]:
                return draw.choices(vocabulary, k=count)

            drawn_times(llm, prompt(16), 8)
            before = llm.stats().experts.num_bytes
            gaps = [gap for _ in range(8) for gap in drawn_times(llm, prompt(4), args.tokens)[1]]
            read = (llm.stats().experts.num_bytes - before) / len(gaps)
            whole = whole or read
            drawn_times(llm, prompt(args.prompt), 1)
            seconds = statistics.median(
                drawn_times(llm, prompt(args.prompt), 1)[0] for _ in range(3)
            )
            placement, model = llm.placement, llm.model_config
            print(
                f"{placement.gpu_expert_layers} layers and {placement.hot_experts} copies in VRAM "
                f"({placement.hot_share:.1%} of reads planned, "
                f"{1 - read / whole:.1%} saved): decode {1 / statistics.median(gaps):.1f} tok/s, "
                f"{read / 1e6:.0f} MB a token from RAM, "
                f"prompt of {args.prompt} {args.prompt / seconds:.0f} tok/s",
                flush=True,
            )
            llm.shutdown()
            del llm
            gc.collect()
            torch.cuda.empty_cache()
            use, _ = known_use(config, open_gguf(demo_path()), model)
            if use is not None and num_experts == 0:
                shares = sorted(use.shares.ravel().tolist(), reverse=True)
                layers, experts = counts_shape(model)
                for part in SKEWS:
                    held = sum(shares[: int(part * layers * experts)]) / layers
                    print(f"  the {part:.0%} most used experts: {held:.1%} of the choices")


if __name__ == "__main__":
    main()
