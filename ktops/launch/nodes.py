"""Weights shared out over NUMA nodes, a line for each node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ktops.output import Output
from ktops.units import format_bytes
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops_engine.node_memory import NodeShare


def show_nodes(output: Output, shares: Iterable[NodeShare]) -> None:
    """What belongs on each node, and how much of that the kernel says is there."""
    for share in shares:
        wanted = format_bytes(share.wanted_bytes)
        if share.there_bytes is None:
            line = text("{wanted} wanted; the kernel does not tell what is there", wanted=wanted)
        else:
            there = format_bytes(share.there_bytes)
            line = text("{wanted} wanted, {there} there", wanted=wanted, there=there)
        output.stage(f"node {share.node}", line)
