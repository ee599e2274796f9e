"""How needs and counts are said: "needs 382 GB", "should be 12.1", "2 nodes"."""

from __future__ import annotations

from ktops_engine.text import Text, text

ABSENT = text("not installed")


def needs(what: object) -> Text:
    """Without it the target cannot be served."""
    return text("needs {what}", what=what)


def should_be(what: object) -> Text:
    """Otherwise something is lost."""
    return text("should be {what}", what=what)


def dotted(version: tuple[int, ...]) -> str:
    """A version as it is written: (12, 1) -> '12.1'."""
    return ".".join(map(str, version))


def node_count(count: int) -> Text:
    """NUMA nodes: "1 node", "2 nodes"."""
    return text("{count} node", count=1) if count == 1 else text("{count} nodes", count=count)


def shard_count(count: int) -> Text:
    """Weight files: "1 shard", "9 shards"."""
    return text("{count} shard", count=1) if count == 1 else text("{count} shards", count=count)
