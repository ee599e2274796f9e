"""Python packages that the doctor may install: small ones."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from ktops_doctor.fixes import pip_command
from ktops_doctor.host import Host
from ktops_doctor.remedy import Remedy
from ktops_engine.text import text


def packages_remedy(host: Host, wanted: Mapping[str, str]) -> Remedy:
    """Install requirements by name ({'numpy': 'numpy>=1.26'}); undone to what was there before."""
    before = {name: host.package_version(name) for name in wanted}
    new = [name for name, number in before.items() if number is None]
    undo = []
    if new:
        undo.append(pip_command(host, "uninstall", "-y", *new))
    if old := [f"{name}=={number}" for name, number in before.items() if number is not None]:
        undo.append(pip_command(host, "install", *old))
    return Remedy(
        text("install {packages}", packages=", ".join(wanted)),
        (pip_command(host, "install", *wanted.values()),),
        undo=" && ".join(map(shlex.join, undo)),
    )


def reinstall_remedy(host: Host, names: Iterable[str]) -> Remedy | None:
    """The same versions once more, nothing else touched. None when a version is not known."""
    pinned = []
    for name in names:
        number = host.package_version(name)
        if number is None:
            return None
        pinned.append(f"{name}=={number}")
    return Remedy(
        text("install {packages} once more", packages=", ".join(pinned)),
        (pip_command(host, "install", "--force-reinstall", "--no-deps", *pinned),),
    )
