"""`ktops bench`: how fast this machine computes, part by part."""

from __future__ import annotations

from typing import Annotated

import typer

from ktops.commandline import CommandSpec, output_of
from ktops.options import Numa
from ktops.settings import load_settings

COMMANDS = (
    CommandSpec(
        "kernels",
        "Commands",
        "Time the expert kernels beside what the memory gives.",
        "ktops.commands.bench:kernels",
    ),
)

EXAMPLES = {
    "bench": (("ktops bench kernels", "the experts of DeepSeek-R1"),),
    "kernels": (
        ("ktops bench kernels", "a layer of DeepSeek-R1, 7 GiB"),
        ("ktops bench kernels --experts 64", "with a quarter of its experts"),
        ("ktops bench kernels --shape v2-lite", "small experts, rows of odd length"),
        ("ktops bench kernels --shape 4096x1536x128x8", "another model's layer"),
        ("ktops bench kernels --isa avx2 --json", "other kernels, for a script"),
        ("ktops bench kernels -q --tokens 1", "tokens and GB/s of weights"),
    ),
}


def kernels(
    ctx: typer.Context,
    shape: Annotated[
        str,
        typer.Option(
            metavar="NAME|SIZES", help="r1, v2-lite, demo, or HIDDENxINTERMEDIATExEXPERTSxTOPK."
        ),
    ] = "r1",
    tokens: Annotated[
        str, typer.Option(metavar="N,N,...", help="Tokens of a call.")
    ] = "1,2,4,8,16,32,128,512",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default: one a core.", show_default=False)
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Kernels of this instruction set, not the best.",
            show_default=False,
        ),
    ] = None,
    numa: Numa = None,
    experts: Annotated[
        int | None,
        typer.Option(help="Experts in memory, not the shape's own number.", show_default=False),
    ] = None,
) -> None:
    """Time one layer of routed experts on random weights.

    GB/s are weights touched, read GB/s what plain reads of the same memory give the same threads in
    turns with the calls, share one over the other. The last column is the error against float64.
    """
    from ktops.bench.kernels import document, lines, make_request, measure
    from ktops_engine.machine import detect_machine

    output = output_of(ctx)
    machine = detect_machine()
    mode = load_settings(numa=numa).numa
    request = make_request(
        machine, shape, tokens, threads=threads, num_experts=experts, isa=isa, numa=mode
    )
    measured = measure(request, machine, output)
    output.result(
        document(measured),
        human=lines(measured, output),
        quiet=[f"{t.num_tokens}\t{t.touched_rate / 1e9:.1f}" for t in measured.timings],
    )
