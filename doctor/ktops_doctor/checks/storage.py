"""Disks: room for the weights and for the native library, and what they are made of."""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.units import GIB, binary

_BUILD_BYTES = 200 << 20
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_OVER_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs"})
_REAL_DISKS = frozenset({"ext4", "ext3", "xfs", "btrfs", "zfs", "f2fs", "bcachefs"})


def _space(host: Host, target: Target) -> Finding:
    disk = host.disk(target.models_dir)
    missing = max(0, target.disk_bytes - target.present_bytes)
    if not missing:
        return ok(f"all of {target.name} is there ({binary(target.present_bytes)})")
    expected = f"needs {binary(missing)}"
    if target.present_bytes:
        expected += f" more ({binary(target.present_bytes)} is there)"
    if disk is None:
        return fail(
            f"{target.models_dir} cannot be looked at",
            expected,
            detail="the weights need a place",
            fix=f"mkdir -p {target.models_dir}",
        )
    value = f"{binary(disk.free_bytes)} free on {disk.path}"
    if disk.file_system:
        value += f" ({disk.file_system})"
    if disk.free_bytes < missing:
        return fail(
            value,
            expected,
            detail=f"{binary(missing - disk.free_bytes)} short",
            fix=_elsewhere(host, missing),
        )
    if not disk.writable:
        return fail(
            value,
            expected,
            detail="this user may not write there",
            fix=_elsewhere(host, missing),
        )
    return ok(value, expected)


def _elsewhere(host: Host, missing: int) -> str:
    """Point the models folder at the disk with the most room, if one has enough."""
    disks = [disk for point in _mount_points(host) if (disk := host.disk(point)) is not None]
    roomy = [disk for disk in disks if disk.free_bytes >= missing and disk.writable]
    if not roomy:
        return f"export KTOPS_MODELS=/path   # on a disk with {binary(missing)} free"
    best = max(roomy, key=lambda disk: disk.free_bytes)
    folder = f"{best.path.rstrip('/')}/ktops-models"
    return f"export KTOPS_MODELS={folder}   # {binary(best.free_bytes)} free there"


def _mount_points(host: Host) -> list[str]:
    rows = (line.split() for line in (host.read_text("/proc/mounts") or "").splitlines())
    return [row[1] for row in rows if len(row) > 2 and row[2] in _REAL_DISKS]


def _kind(host: Host, target: Target) -> Finding:
    disk = host.disk(target.models_dir)
    if disk is None or not disk.file_system:
        return skip("the file system is not known")
    if target.weights_bytes < GIB:
        return skip(f"{target.name} is small")
    if disk.file_system in _IN_MEMORY:
        return warn(
            f"{disk.path} is a {disk.file_system}",
            detail="weights there take memory twice: once as files, once in the engine",
            fix="export KTOPS_MODELS=/path   # on a disk",
        )
    if disk.file_system in _OVER_NETWORK:
        return warn(
            f"{disk.path} is {disk.file_system}",
            detail=f"{binary(target.weights_bytes)} come over it at every start",
            fix="export KTOPS_MODELS=/path   # on a local disk",
        )
    return ok(disk.file_system)


def _cache(host: Host, target: Target) -> Finding:
    folder = host.env("KTOPS_CACHE") or f"{host.env('XDG_CACHE_HOME') or '~/.cache'}/ktops"
    disk = host.disk(folder)
    expected = f"needs {binary(_BUILD_BYTES)}"
    if disk is None:
        return skip(f"{folder} cannot be looked at")
    value = f"{binary(disk.free_bytes)} free for {folder}"
    if disk.writable and disk.free_bytes >= _BUILD_BYTES:
        return ok(value, expected)
    return fail(
        value if disk.writable else f"{disk.path} may not be written",
        expected,
        detail="the native library cannot be built there",
        fix="export KTOPS_CACHE=/path   # a folder that can be written, with room",
    )


CHECKS = (
    Check(
        id="disk.space",
        title="Room for the weights",
        section=Section.STORAGE,
        run=_space,
        why="The weight files of the model, less what is there already, must fit in the models "
        "folder (KTOPS_MODELS).",
    ),
    Check(
        id="disk.type",
        title="File system of the models folder",
        section=Section.STORAGE,
        run=_kind,
        why="Weights in a tmpfs take memory twice; over a network, loading takes as long as the "
        "network.",
    ),
    Check(
        id="disk.cache",
        title="Room for the native library",
        section=Section.STORAGE,
        run=_cache,
        why="The native library is built in ~/.cache/ktops, or where KTOPS_CACHE or "
        "XDG_CACHE_HOME say.",
    ),
)
