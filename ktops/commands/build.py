"""`ktops build`: compile the native kernels for this machine, or say that they are current."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from typing import Annotated

import typer

from ktops.commandline import output_of

EXAMPLES = (
    ("ktops build", "build, or say that nothing changed"),
    ("ktops build --numa on --force", "build again, for several NUMA nodes"),
    ("USE_NUMA=1 ktops build", "the same decision by the environment"),
    ("ktops build -q", "the path of the library"),
)


class Numa(StrEnum):
    """Whether the kernels spread weights over NUMA nodes."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def build(
    ctx: typer.Context,
    numa: Annotated[
        Numa, typer.Option(help="Spread weights over NUMA nodes; auto: USE_NUMA, else detected.")
    ] = Numa.AUTO,
    force: Annotated[bool, typer.Option("--force", help="Build even when current.")] = False,
) -> None:
    """Build the native kernels: once a machine, again when sources or compiler change.

    `ktops serve` and `ktops chat` do this on their own when it is needed.
    """
    from ktops_engine.native.build import build_native

    output = output_of(ctx)
    started = time.monotonic()
    info = build_native(numa=numa.value, force=force, on_line=output.note)
    seconds = time.monotonic() - started
    reason = _numa_reason(numa, info.numa, os.environ.get("USE_NUMA", ""))
    output.result(
        {
            "path": str(info.path),
            "numa": info.numa,
            "numa_reason": reason,
            "compiler": info.compiler,
            "built_at": info.built_at,
            "sources_hash": info.sources_hash,
            "log": str(info.log),
            "seconds": round(seconds, 3),
        },
        human=[
            f"library   {info.path}",
            f"compiler  {info.compiler}",
            f"NUMA      {'on' if info.numa else 'off'}: {reason}",
            f"built     {info.built_at}, this run took {seconds:.1f} s",
        ],
        quiet=[str(info.path)],
    )


def _numa_reason(asked: Numa, decided: bool, use_numa: str) -> str:
    """Why the library is built for several NUMA nodes, or is not."""
    if asked is not Numa.AUTO:
        return f"asked for by --numa {asked}"
    if use_numa:
        return f"asked for by USE_NUMA={use_numa}"
    return "this machine has several nodes" if decided else "this machine has one node"
