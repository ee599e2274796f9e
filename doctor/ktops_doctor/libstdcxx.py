"""A newer libstdc++ in front: conda's package, a link to the system's, or the old one taken away.

Conda's library is replaced by conda where conda is at hand. Without it, the file name that the
loader asks for is made a link to the system's library, and what was there stays beside it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from ktops_doctor.fixes import install, remark
from ktops_doctor.host import Host
from ktops_doctor.libraries import (
    Library,
    conda_prefix,
    defined_versions,
    system_libstdcxx,
)
from ktops_doctor.remedy import Command, Remedy
from ktops_engine.text import text

BACKUP = ".before-ktops"
_PACKAGES = ("libstdcxx-ng", "libstdcxx")
_CONDAS = ("conda", "mamba", "micromamba")


@dataclass(frozen=True)
class Cure:
    """The line to paste, and the same as a remedy where the doctor may do it."""

    line: str
    remedy: Remedy | None = None


def newer_libstdcxx(host: Host, loaded: str, library: Library) -> Cure:
    """What gives this interpreter the versions that `library` wants and `loaded` lacks."""
    prefix = conda_prefix(host, loaded)
    system = system_libstdcxx(host)
    enough = (
        system is not None and system != loaded and library.needs <= defined_versions(host, system)
    )
    if prefix is not None:
        conda = next((name for name in _CONDAS if host.which(name)), None)
        if conda is None and system is not None and enough:
            return _by_link(system, loaded)
        return _by_conda(host, conda, prefix)
    for variable in ("LD_PRELOAD", "LD_LIBRARY_PATH"):
        folder = loaded.rpartition("/")[0]
        if enough and folder and folder in host.env(variable):
            why = text("it puts {folder} before the system's libraries", folder=folder)
            return Cure(remark(f"unset {variable}", why))
    return Cure(install_libstdcxx(host))


def install_libstdcxx(host: Host) -> str:
    """The line that installs the distribution's newest libstdc++."""
    return install(
        host,
        debian="libstdc++6",
        fedora="libstdc++",
        suse="libstdc++6",
        arch="gcc-libs",
        conda="libstdcxx-ng",
    )


def _by_link(system: str, loaded: str) -> Cure:
    kept = loaded + BACKUP
    remedy = Remedy(
        text("let {link} lead to the system's library; the old one is kept", link=loaded),
        (("cp", "-aT", "--remove-destination", loaded, kept), ("ln", "-sfT", system, loaded)),
        undo=shlex.join(("mv", "-f", kept, loaded)),
    )
    return Cure(remedy.line, remedy)


def _by_conda(host: Host, conda: str | None, prefix: str) -> Cure:
    environment = _environment(host, prefix)
    program = conda or _CONDAS[0]

    def line(*what: str) -> Command:
        return (program, "install", "-y", *environment, *what)

    command = line("-c", "conda-forge", _PACKAGES[0])
    if conda is None:  # nothing here can run it
        return Cure(shlex.join(command))
    present = _installed(host, prefix)
    undo = shlex.join(line(present)) if present else shlex.join(line("--revision", "N"))
    title = text("install conda-forge's libstdc++ into {environment}", environment=prefix)
    return Cure(shlex.join(command), Remedy(title, (command,), undo))


def _installed(host: Host, prefix: str) -> str:
    """'libstdcxx-ng=11.2.0' as the environment records it (conda-meta/NAME-VERSION-BUILD.json)."""
    for record in host.list_dir(f"{prefix}/conda-meta"):
        name, _, rest = record.removesuffix(".json").rpartition("-")[0].rpartition("-")
        if name in _PACKAGES and rest:
            return f"{name}={rest}"
    return ""


def _environment(host: Host, prefix: str) -> Command:
    """How `conda install` names an environment: by name under envs/, else by path."""
    parent, _, name = prefix.rpartition("/")
    if parent.endswith("/envs"):
        return ("-n", name)
    if host.exists(f"{prefix}/condabin"):
        return ("-n", "base")
    return ("-p", prefix)
