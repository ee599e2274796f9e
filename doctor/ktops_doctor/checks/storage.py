"""Disks: room for the weights and for the native library, and what they are made of."""

from __future__ import annotations

import shlex

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.expectations import needs
from ktops_doctor.fixes import remark
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.units import GIB, binary
from ktops_engine.text import Text, text

_ELSEWHERE = "export KTOPS_MODELS=/path"
_BUILD_BYTES = 200 << 20
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_OVER_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs"})
_REAL_DISKS = frozenset({"ext4", "ext3", "xfs", "btrfs", "zfs", "f2fs", "bcachefs"})


def _space(host: Host, target: Target) -> Finding:
    disk = host.disk(target.models_dir)
    missing = target.missing_bytes
    if not missing:
        size = binary(target.present_bytes)
        return ok(text("all of {model} is there ({size})", model=target.name, size=size))
    expected = needs(binary(missing))
    if target.present_bytes:
        expected = text(
            "needs {missing} more ({present} is there)",
            missing=binary(missing),
            present=binary(target.present_bytes),
        )
    if disk is None:
        return fail(
            _hidden(target.models_dir),
            expected,
            detail=text("the weights need a place"),
            fix=f"mkdir -p {target.models_dir}",
        )
    where = f"{disk.path} ({disk.file_system})" if disk.file_system else disk.path
    value = text("{free} free on {where}", free=binary(disk.free_bytes), where=where)
    if disk.free_bytes < missing:
        return fail(
            value,
            expected,
            detail=text("{size} short", size=binary(missing - disk.free_bytes)),
            fix=_elsewhere(host, missing),
        )
    if not disk.writable:
        return fail(
            value,
            expected,
            detail=text("this user may not write there"),
            fix=_elsewhere(host, missing),
        )
    return ok(value, expected)


def _elsewhere(host: Host, missing: int) -> str:
    """Point the models folder at the disk with the most room, if one has enough."""
    disks = [disk for point in _mount_points(host) if (disk := host.disk(point)) is not None]
    roomy = [disk for disk in disks if disk.free_bytes >= missing and disk.writable]
    if not roomy:
        return remark(_ELSEWHERE, text("on a disk with {size} free", size=binary(missing)))
    best = max(roomy, key=lambda disk: disk.free_bytes)
    folder = f"{best.path.rstrip('/')}/ktops-models"
    free = text("{size} free there", size=binary(best.free_bytes))
    return remark(f"export KTOPS_MODELS={shlex.quote(folder)}", free)


def _hidden(path: str) -> Text:
    return text("{path} cannot be looked at", path=path)


def _mount_points(host: Host) -> list[str]:
    rows = (line.split() for line in (host.read_text("/proc/mounts") or "").splitlines())
    return [row[1] for row in rows if len(row) > 2 and row[2] in _REAL_DISKS]


def _kind(host: Host, target: Target) -> Finding:
    disk = host.disk(target.models_dir)
    if disk is None or not disk.file_system:
        return skip(text("the file system is not known"))
    if target.weights_bytes < GIB:
        return skip(text("{model} is small", model=target.name))
    if disk.file_system in _IN_MEMORY:
        return warn(
            text("{path} is a {kind}", path=disk.path, kind=disk.file_system),
            detail=text("weights there take memory twice: once as files, once in the engine"),
            fix=remark(_ELSEWHERE, text("on a disk")),
        )
    if disk.file_system in _OVER_NETWORK:
        return warn(
            text("{path} is {kind}", path=disk.path, kind=disk.file_system),
            detail=text("{size} come over it at every start", size=binary(target.weights_bytes)),
            fix=remark(_ELSEWHERE, text("on a local disk")),
        )
    return ok(disk.file_system)


def _cache(host: Host, target: Target) -> Finding:
    folder = host.env("KTOPS_CACHE") or f"{host.env('XDG_CACHE_HOME') or '~/.cache'}/ktops"
    disk = host.disk(folder)
    expected = needs(binary(_BUILD_BYTES))
    if disk is None:
        return skip(_hidden(folder))
    value = text("{free} free for {folder}", free=binary(disk.free_bytes), folder=folder)
    if disk.writable and disk.free_bytes >= _BUILD_BYTES:
        return ok(value, expected)
    return fail(
        value if disk.writable else text("{path} may not be written", path=disk.path),
        expected,
        detail=text("the native library cannot be built there"),
        fix=remark("export KTOPS_CACHE=/path", text("a folder that can be written, with room")),
    )


CHECKS = (
    Check(
        id="disk.space",
        title=text("Room for the weights"),
        section=Section.STORAGE,
        run=_space,
        why="The weight files of the model, less what is there already, must fit in the models "
        "folder (KTOPS_MODELS).",
    ),
    Check(
        id="disk.type",
        title=text("File system of the models folder"),
        section=Section.STORAGE,
        run=_kind,
        why="Weights in a tmpfs take memory twice; over a network, loading takes as long as the "
        "network.",
    ),
    Check(
        id="disk.cache",
        title=text("Room for the native library"),
        section=Section.STORAGE,
        run=_cache,
        why="The native library is built in ~/.cache/ktops, or where KTOPS_CACHE or "
        "XDG_CACHE_HOME say.",
    ),
)
