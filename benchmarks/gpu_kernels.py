"""The GPU's kernels at R1's shapes, and what passes between GPU and CPU.

    python benchmarks/gpu_kernels.py
    python benchmarks/gpu_kernels.py --sections products --tokens 1 16 --types Q8_0 --json out.json

Products of a layer with the tokens of a decode step, latent attention, experts in GPU memory, the
handoff of experts to the CPU inside a graph, RAM and copies, and one layer's experts for a prompt
on CPU, streamed, and both. Kernels are replayed as a graph over weights that the GPU's cache cannot
hold; figures are medians. Shares are of what plain reads or copies reach in the same run.

Kernels are compiled first, by several processes at once. All sections take about 7.3 GB of RAM for
a layer's experts and up to 15 GB of GPU memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpu import attention, experts, handoff, host, products
from gpu.timing import Case, Figure, graph_seconds
from gpu.weights import native

from ktops_engine.gguf import QuantType

CASES = ("products", "attention", "experts")
OTHERS: dict[str, Callable[[argparse.Namespace], Iterator[Figure]]] = {
    "handoff": lambda args: handoff.figures(),
    "RAM": lambda args: host.transfers(),
    "prompt": lambda args: host.prompts(args.prompts),
}


def all_cases(args: argparse.Namespace) -> list[Case]:
    """What is captured and replayed, of the sections asked for."""
    types = [QuantType[name] for name in args.types]
    found = {
        "products": products.cases(args.tokens, types),
        "attention": attention.cases(args.tokens),
        "experts": experts.cases(args.tokens),
    }
    return [case for name in CASES if name in args.sections for case in found[name]]


def compile_cases(args: argparse.Namespace) -> None:
    """In processes of their own, so that all cores compile."""
    count = max(1, min(len(os.sched_getaffinity(0)) - 1, 15))
    command = [sys.executable, *sys.argv]
    running = [
        subprocess.Popen([*command, "--only-compile", f"{part}/{count}"]) for part in range(count)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("some kernels were not compiled")


def memory_rates() -> tuple[float, float]:
    """Bytes a second of a copy, read and written, and of a sum, read."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copying = 2 * source.nbytes / graph_seconds([lambda: target.copy_(source)] * 2)
    reading = source.nbytes / graph_seconds([source.sum] * 2)
    return copying, reading


def show(figure: Figure, ceiling: float) -> None:
    """One line."""
    found = figure.as_json(ceiling)
    long = figure.seconds >= 10e-3
    duration = f"{figure.seconds * 1e3:9.1f} ms" if long else f"{figure.seconds * 1e6:9.1f} us"
    tokens = "" if figure.tokens is None else str(figure.tokens)
    rate = f"{found['gb_s']:7.0f}" if found["gb_s"] else 7 * " "
    is_on_gpu = figure.section in CASES
    share = f"{found['share']:6.2f}" if found["share"] and is_on_gpu else 6 * " "
    flops = f"{found['tflop_s']:8.1f}" if found["tflop_s"] else 8 * " "
    print(
        f"{figure.section:10}{figure.name:42}{tokens:>6}{duration}{rate}{share}{flops}"
        f"  {figure.note}".rstrip(),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="*", default=[*CASES, *OTHERS], metavar="NAME")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--types", nargs="*", default=[], help="of all products, as Q5_K")
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 512, 2048, 4096])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-compile", metavar="PART/PARTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.sections) - {*CASES, *OTHERS}:
        parser.error(f"no section {sorted(unknown)}; there are {[*CASES, *OTHERS]}")
    cases = all_cases(args)
    if args.only_compile:
        part, parts = map(int, args.only_compile.split("/"))
        # Cases of one name share kernels.
        names = sorted({case.name for case in cases})[part::parts]
        for case in cases:
            if case.name in names:
                case.compile()
        return
    native()
    compile_cases(args)
    copying, reading = memory_rates()
    ceiling = max(copying, reading)
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "copy_gb_s": copying / 1e9,
        "read_gb_s": reading / 1e9,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    print(
        f"{'section':10}{'what':42}{'tokens':>6}{'time':>12}{'GB/s':>7}{'share':>6}{'TFLOP/s':>8}"
    )
    figures = []

    def note(figure: Figure) -> None:
        show(figure, ceiling)
        figures.append(figure.as_json(ceiling))

    for case in cases:
        note(case.measure())
    for name, section in OTHERS.items():
        if name in args.sections:
            for figure in section(args):
                note(figure)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
