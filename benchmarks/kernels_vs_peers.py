"""A layer of experts beside kt-kernel (KTransformers) or ggml (llama.cpp), on the same bytes, in
turns, in one run.

    python benchmarks/kernels_vs_peers.py --peer FOLDER [--shape r1] [--threads 16]

FOLDER holds kt-kernel's wheel unpacked (`pip download --no-deps kt-kernel; unzip kt_kernel-*.whl -d
FOLDER`; only kt_kernel/_kt_kernel_ext_VARIANT.*.so and kt_kernel.libs are used). Its extension is
called directly as its own wrapper for GGUF files does (method LLAMAFILE), so neither torch nor its
Python package is needed. The interpreter must be of the version that the wheel is for.

Or FOLDER holds the libraries of ggml, libggml-base.so and libggml-cpu.so, as llama_cpp/lib of
llama-cpp-python does; then ggml computes the graph that llama.cpp makes of such a layer.

Each side runs in a process of its own, stopped while another one computes; rounds alternate, and
medians over all calls are printed. kt-kernel has threads beside those it computes with and loses
much when they are more than the cores: --peer-threads takes several counts, and its best one is
printed for each number of tokens, in the column before the ratio (of GB/s of weights touched).
Every call takes other experts at random. Activations are exact in bfloat16 on both sides; kt-kernel
rounds its output to bfloat16 as well, ours is float32. The share is of plain reads that take turns
with our calls. Errors are relative L2 against float64.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ggml_layer import GgmlLayer
from kt_kernel_layer import KtKernelLayer, from_bfloat16, to_bfloat16

from ktops_engine.bench.layer import ExpertLayer, expert_blocks
from ktops_engine.bench.shapes import LayerShape, parse_shape
from ktops_engine.bench.timing import LayerCall, Reader, pinned
from ktops_engine.machine import detect_machine
from ktops_engine.native.build import build_native
from ktops_engine.native.load import load_native

OURS, GGML = "ktops", "libggml-cpu.so"
Measure = Callable[[int, int, float], dict[str, Any]]


def new_call(shape: LayerShape, num_tokens: int, seed: int) -> LayerCall:
    call = LayerCall(shape, num_tokens, np.random.default_rng(seed))
    call.x = from_bfloat16(to_bfloat16(call.x))
    return call


def collect(
    run: Callable[[], float], call: LayerCall, seconds: float, read: Callable[[], float]
) -> dict[str, Any]:
    """Seconds and different experts of each call, and a read before each."""
    found: dict[str, Any] = {"seconds": [], "experts": [], "reads": []}
    run()
    end = time.perf_counter() + seconds
    while len(found["seconds"]) < 3 or time.perf_counter() < end:
        found["experts"].append(call.redraw())
        found["reads"].append(read())
        found["seconds"].append(run())
    return found


def few_experts(shape: LayerShape) -> ExpertLayer:
    """The experts of one token. All experts have the same weights, so that any may be held against
    these in float64, which our library dequantises."""
    native = load_native(build_native())
    with native.create_pool(detect_machine().cpus[:1]) as pool:
        return ExpertLayer(native, pool, replace(shape, num_experts=shape.num_experts_per_tok))


def error_of(call: LayerCall, few: ExpertLayer) -> float:
    """The error of a call that a peer has answered; its experts are those of `few` from then on."""
    call.ids = np.tile(np.arange(few.shape.num_experts, dtype=np.int32), (call.num_tokens, 1))
    return call.relative_l2(few)


def start_ktops(shape: LayerShape, threads: int) -> tuple[str, Measure]:
    native = load_native(build_native())
    pool = native.create_pool(detect_machine().cpus[:threads])
    layer = ExpertLayer(native, pool, shape)
    reader = Reader(layer, pool)

    def measure(num_tokens: int, seed: int, seconds: float) -> dict[str, Any]:
        call = new_call(shape, num_tokens, seed)
        found = collect(lambda: call.run(layer, pool), call, seconds, lambda: reader.rate(pool))
        return {**found, "error": None if seed else call.relative_l2(layer)}

    return native.isa, measure


def start_kt_kernel(
    shape: LayerShape, threads: int, folder: Path, max_tokens: int
) -> tuple[str, Measure]:
    layer = KtKernelLayer(folder, threads, shape, expert_blocks(shape), max_tokens)
    few = few_experts(shape)

    def measure(num_tokens: int, seed: int, seconds: float) -> dict[str, Any]:
        call = new_call(shape, num_tokens, seed)
        x = to_bfloat16(call.x)
        y = np.zeros_like(x)
        found = collect(lambda: layer.run(x, call.ids, call.weights, y), call, seconds, lambda: 0.0)
        call.y = from_bfloat16(y)
        return {**found, "error": None if seed else error_of(call, few)}

    return f"kt-kernel {layer.variant}", measure


def start_ggml(shape: LayerShape, threads: int, folder: Path) -> tuple[str, Measure]:
    types = (int(shape.gate_type), int(shape.gate_type), int(shape.down_type))
    sizes = shape.hidden_size, shape.moe_intermediate_size
    blocks = expert_blocks(shape)
    layer = GgmlLayer(folder, threads, types, blocks, shape.num_experts, sizes)
    few = few_experts(shape)

    def measure(num_tokens: int, seed: int, seconds: float) -> dict[str, Any]:
        call = new_call(shape, num_tokens, seed)
        found = collect(
            lambda: layer.run(call.x, call.ids, call.weights, call.y), call, seconds, lambda: 0.0
        )
        return {**found, "error": None if seed else error_of(call, few)}

    return "ggml", measure


def serve_side(args: argparse.Namespace, shape: LayerShape) -> None:
    """One side: measures what it is told on stdin, a line of JSON each, answers on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # kt-kernel prints
    cpu = detect_machine().cpus[0]
    if args.side == OURS:
        isa, measure = start_ktops(shape, args.threads)
        with pinned(cpu):
            answer_orders(answers, isa, measure)
    else:
        if (args.peer / GGML).is_file():
            isa, measure = start_ggml(shape, int(args.side), args.peer)
        else:
            isa, measure = start_kt_kernel(shape, int(args.side), args.peer, max(args.tokens))
        answer_orders(answers, isa, measure)


def answer_orders(answers: TextIO, isa: str, measure: Measure) -> None:
    print(json.dumps(isa), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(*json.loads(line))), file=answers, flush=True)


class Side:
    """The process of one side, stopped except while it starts or measures."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        command = [sys.executable, __file__, *arguments, "--side", name]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.isa = self._answer()

    def measure(self, num_tokens: int, seed: int, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps([num_tokens, seed, seconds]), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"side {self.name} ended with status {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Figures:
    """One side at one number of tokens; medians over the calls of all rounds."""

    seconds: float
    touched_rate: float
    error: float

    @classmethod
    def of(cls, shape: LayerShape, rounds: list[dict[str, Any]]) -> Figures:
        seconds = [s for found in rounds for s in found["seconds"]]
        experts = [e for found in rounds for e in found["experts"]]
        rates = [e * shape.expert_bytes / s for e, s in zip(experts, seconds, strict=True)]
        middle = statistics.median(seconds)
        return cls(middle, statistics.median(rates), rounds[0]["error"])

    def cells(self, flops: int, read: float) -> str:
        return (
            f"{1e3 * self.seconds:9.3f} {self.touched_rate / 1e9:7.1f} "
            f"{self.touched_rate / read:5.2f} {flops / self.seconds / 1e12:8.3f} {self.error:8.1e}"
        )


def print_row(shape: LayerShape, num_tokens: int, rounds: dict[str, list[dict[str, Any]]]) -> None:
    figures = {name: Figures.of(shape, found) for name, found in rounds.items()}
    ours = figures.pop(OURS)
    best = min(figures, key=lambda name: figures[name].seconds)
    read = statistics.median(r for found in rounds[OURS] for r in found["reads"])
    flops = shape.flops(num_tokens)
    ratio = ours.touched_rate / figures[best].touched_rate
    cells = [f.cells(flops, read) for f in (ours, figures[best])]
    print(f"{num_tokens:6d} {read / 1e9:7.1f} {' '.join(cells)} {best:>7} {ratio:6.2f}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="the libraries of the other side")
    parser.add_argument("--shape", default="r1")
    parser.add_argument("--experts", type=int, help="instead of the shape's own")
    parser.add_argument("--threads", type=int, default=len(detect_machine().cpus))
    parser.add_argument("--peer-threads", type=int, nargs="+", help="counts to try")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.7, help="of a figure in a round")
    parser.add_argument("--json", type=Path, help="write every round there")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    shape = parse_shape(args.shape)
    if args.experts:
        shape = replace(shape, num_experts=args.experts)
    if args.side:
        serve_side(args, shape)
        return
    build_native()
    names = [OURS, *map(str, args.peer_threads or [args.threads])]
    record: dict[str, Any] = {"shape": asdict(shape), "threads": args.threads}
    sides: list[Side] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stopped processes must not be left
    try:
        for name in names:
            sides.append(Side(name, sys.argv[1:]))  # noqa: PERF401 - those that started are stopped
        print(f"{shape}\n{shape.layer_bytes / 1e9:.2f} GB, {args.threads} threads of ktops")
        print(f"ktops {sides[0].isa}, peer {sides[1].isa}")
        print(f"{'':6} {'read':>7} {OURS:>41} {'peer':>41}")
        head = f"{'ms':>9} {'GB/s':>7} {'share':>5} {'TFLOP/s':>8} {'error':>8}"
        print(f"tokens {'GB/s':>7} {head} {head} threads  ratio", flush=True)
        for num_tokens in args.tokens:
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for seed in range(args.rounds):
                for side in sides:
                    rounds[side.name].append(side.measure(num_tokens, seed, args.seconds))
            print_row(shape, num_tokens, rounds)
            record[str(num_tokens)] = rounds
    finally:
        for side in sides:
            side.stop()
    if args.json:
        args.json.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
