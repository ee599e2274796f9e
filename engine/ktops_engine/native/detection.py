"""What a build would be on the running machine, and how one that is there differs from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.native.cache import DETECTED, BuildInfo
from ktops_engine.native.sources import find_sources, hash_sources
from ktops_engine.native.toolchain import (
    NODES,
    NumaChoice,
    Toolchain,
    find_toolchain,
    memory_nodes,
    numa_origin,
    wants_numa,
)
from ktops_engine.text import Text, text


@dataclass(frozen=True)
class Detection:
    """What `ktops build` would do here and now.

    `nodes` are the NUMA nodes that have memory; `toolchain` is None when something is missing, and
    `problem` says what.
    """

    sources_hash: str
    nodes: tuple[int, ...]
    numa: bool
    numa_reason: Text
    toolchain: Toolchain | None
    problem: KtopsError | None


def detect(
    choice: NumaChoice = "auto", environ: Mapping[str, str] = os.environ, nodes: Path = NODES
) -> Detection:
    """Look at sources, machine and tools. Raises KtopsError: sources-missing, bad-use-numa."""
    found = memory_nodes(nodes)
    numa = wants_numa(choice, environ, nodes)
    toolchain, problem = None, None
    try:
        toolchain = find_toolchain()
    except KtopsError as error:
        problem = error
    return Detection(
        sources_hash=hash_sources(find_sources()),
        nodes=found,
        numa=numa,
        numa_reason=numa_reason(numa_origin(choice, environ), len(found)),
        toolchain=toolchain,
        problem=problem,
    )


def numa_reason(origin: str, num_nodes: int) -> Text:
    """Why a build is for several NUMA nodes, or is not: `origin` as in `BuildInfo`."""
    if origin != DETECTED:
        return text("asked for by {origin}", origin=origin)
    if num_nodes > 1:
        return text("{count} nodes have memory", count=num_nodes)
    return text("one node has memory")


def differences(build: BuildInfo, now: Detection) -> list[Text]:
    """How `build` differs from what the machine would build now; empty when it does not."""
    found: list[Text] = []
    if build.sources_hash != now.sources_hash:
        found.append(
            text(
                "stale: built from other sources ({built}, these are {here})",
                built=build.sources_hash[:12],
                here=now.sources_hash[:12],
            )
        )
    if now.toolchain is not None and build.compiler != now.toolchain.compiler.version:
        found.append(
            text(
                "stale: built by {built}, here is {here}",
                built=build.compiler,
                here=now.toolchain.compiler.version,
            )
        )
    if build.numa != now.numa:
        found.append(_numa_difference(build, now))
    elif build.num_nodes != len(now.nodes):
        found.append(
            text(
                "built where {built} nodes had memory, here {here} have",
                built=build.num_nodes,
                here=len(now.nodes),
            )
        )
    return found


def _numa_difference(build: BuildInfo, now: Detection) -> Text:
    if now.numa:
        return text(
            "built with NUMA off, and it would be on here: {reason}", reason=now.numa_reason
        )
    return text("built with NUMA on, and it would be off here: {reason}", reason=now.numa_reason)
