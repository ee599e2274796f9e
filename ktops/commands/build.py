"""`ktops build`: compile the native kernels for this machine, or say that they are current."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops_engine.text import text

EXAMPLES = (
    ("ktops build", "build, or say that nothing changed"),
    ("ktops build --info", "what was built, what would be now"),
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
    info: Annotated[
        bool, typer.Option("--info", help="Say what was built and what differs now; build nothing.")
    ] = False,
) -> None:
    """Build the native kernels: once a machine, again when sources or compiler change.

    The doctor's checks of the toolchain come first. `ktops serve` and `ktops chat` build on their
    own when it is needed.
    """
    from ktops.launch.checklist import check_documents, show_checks
    from ktops.launch.stages import refuse_unbuildable, toolchain_checks
    from ktops.report.build import build_document, build_lines, print_info
    from ktops.settings import load_settings
    from ktops_engine.native.build import build_native

    output = output_of(ctx)
    if info:
        print_info(output)
        return
    checked = toolchain_checks(load_settings())
    show_checks(output, checked)
    refuse_unbuildable(checked)
    started = time.monotonic()
    built = build_native(numa=numa.value, force=force, on_line=output.note)
    seconds = time.monotonic() - started
    took = text("this run took {seconds} s", seconds=f"{seconds:.1f}")
    output.result(
        {
            **build_document(built),
            "seconds": round(seconds, 3),
            "checks": check_documents(checked),
        },
        human=[*build_lines(built, output), output.say(took)],
        quiet=[str(built.path)],
    )
