"""The weight files of the target, when they are on the disk."""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip
from ktops_doctor.expectations import shard_count
from ktops_doctor.fixes import remark
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.units import binary
from ktops_engine.text import text


def _files(host: Host, target: Target) -> Finding:
    if not target.weights:
        return skip(text("{model} is not downloaded", model=target.name))
    output = host.probe("model", target.weights)
    facts = output.facts
    shards, size = facts.get("num_shards"), facts.get("total_bytes")
    if isinstance(shards, int) and isinstance(size, int):
        return ok(
            text(
                "{shards}, {size} of tensors, whole", shards=shard_count(shards), size=binary(size)
            )
        )
    hint = str(facts.get("hint") or "").partition("\n")[0]
    return fail(
        text("the weights of {model} cannot be used", model=target.name),
        detail=output.reason(),
        fix=hint or remark("ktops models", text("shows what is here, and how the rest is fetched")),
    )


CHECKS = (
    Check(
        id="model.files",
        title=text("Weight files"),
        section=Section.MODEL,
        run=_files,
        needs=("lib.engine",),
        why="Headers, shard count, sizes, offsets and tensor types of the GGUF files are checked "
        "as the server checks them before it loads; the tensors themselves are not read. A file "
        "that is cut short or of another kind is named.",
    ),
)
