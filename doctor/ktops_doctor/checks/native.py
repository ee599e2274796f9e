"""The native library: built, current, loadable, and at peace with libstdc++ and glibc."""

from __future__ import annotations

import shlex

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.fixes import install, pip_install, sudo
from ktops_doctor.host import Host
from ktops_doctor.libraries import (
    Library,
    conda_prefix,
    defined_versions,
    libraries,
    loaded_libstdcxx,
    newest,
    system_libstdcxx,
)
from ktops_doctor.target import Target
from ktops_doctor.units import version

_GLIBCXX = "GLIBCXX_"
_GLIBC = "GLIBC_"


def _engine(host: Host, target: Target) -> Finding:
    output = host.probe("native")
    if "built" in output.facts or "find_error" in output.facts:
        return ok("ktops_engine imports")
    error = output.facts.get("import_error") or output.error or "it said nothing"
    return fail(
        "ktops_engine does not import",
        detail=str(error),
        fix=pip_install(host, "--force-reinstall", "--no-deps", "ktops"),
    )


def _library(host: Host, target: Target) -> Finding:
    output = host.probe("native")
    facts = output.facts
    if "find_error" in facts:
        return fail(
            "its build folder cannot be read",
            detail=str(facts["find_error"]),
            fix="ktops build --force",
        )
    if not facts.get("built"):
        return warn(
            "not built, or built from other sources",
            detail="the next `ktops serve` builds it first, which takes up to a minute",
            fix="ktops build",
        )
    if "isa" not in facts:
        error = facts.get("load_error") or output.error or "it said nothing"
        return fail(f"{facts['path']} does not load", detail=str(error), fix="ktops build --force")
    value = f"built {str(facts['built_at'])[:10]} by {facts['compiler']}, {facts['isa']} kernels"
    return ok(value)


def _glibcxx(host: Host, target: Target) -> Finding:
    found = libraries(host)
    wanting = [library for library in found if library.needs]
    loaded = loaded_libstdcxx(host)
    if loaded is None:
        if not wanting:
            return ok(f"{_free_of_it(found)}no libstdc++ here")
        return fail(
            f"{_packages(wanting)} needs libstdc++, and this Python finds none",
            detail="it does not load",
            fix=_install_libstdcxx(host),
        )
    defined = defined_versions(host, loaded)
    end = newest(defined, _GLIBCXX) or "no known version"
    missing = [library for library in wanting if library.needs - defined]
    if not missing:
        most = newest([name for library in wanting for name in library.needs], _GLIBCXX)
        wants = f"{_packages(wanting)} needs {most}, " if wanting else ""
        return ok(f"{_free_of_it(found)}{wants}{loaded} has {end}")
    first = missing[0]
    lacking = newest(first.needs - defined, _GLIBCXX) or min(first.needs - defined)
    return fail(
        f"{_packages(missing)} needs {lacking}; this Python loads {loaded}, "
        f"which ends at {end.removeprefix(_GLIBCXX)}",
        detail=f"{first.path.rpartition('/')[2]} does not load",
        fix=_newer_libstdcxx(host, loaded, first),
    )


def _packages(found: list[Library]) -> str:
    return ", ".join(dict.fromkeys(library.package for library in found))


def _free_of_it(found: list[Library]) -> str:
    own = [library for library in found if library.package == "libktops"]
    return "libktops has its own (static); " if own and not own[0].needs else ""


def _newer_libstdcxx(host: Host, loaded: str, library: Library) -> str:
    """Conda's package where conda's library is in the way, the system's by a symlink where conda
    is not at hand, else whatever pushed an old one in front taken away."""
    prefix = conda_prefix(host, loaded)
    system = system_libstdcxx(host)
    system_is_enough = (
        system is not None and system != loaded and library.needs <= defined_versions(host, system)
    )
    if prefix is not None:
        if system_is_enough and host.which("conda") is None:
            return shlex.join(["ln", "-sf", system or "", loaded])
        return f"conda install -y {_environment(host, prefix)} -c conda-forge libstdcxx-ng"
    for variable in ("LD_PRELOAD", "LD_LIBRARY_PATH"):
        folder = loaded.rpartition("/")[0]
        if system_is_enough and folder and folder in host.env(variable):
            return f"unset {variable}   # it puts {folder} before the system's libraries"
    return _install_libstdcxx(host)


def _environment(host: Host, prefix: str) -> str:
    """How `conda install` names an environment: by name under envs/, else by path."""
    parent, _, name = prefix.rpartition("/")
    if parent.endswith("/envs"):
        return f"-n {shlex.quote(name)}"
    if host.exists(f"{prefix}/condabin"):
        return "-n base"
    return f"-p {shlex.quote(prefix)}"


def _install_libstdcxx(host: Host) -> str:
    return install(
        host,
        debian="libstdc++6",
        fedora="libstdc++",
        suse="libstdc++6",
        arch="gcc-libs",
        conda="libstdcxx-ng",
    )


def _glibc(host: Host, target: Target) -> Finding:
    libc = host.platform().libc.removeprefix("glibc ")
    found = [library for library in libraries(host) if library.glibc_needs]
    if not found:
        return skip("neither the native library nor torch is there")
    wanted = {library: newest(library.glibc_needs, _GLIBC) for library in found}
    worst = max(found, key=lambda library: version(wanted[library].removeprefix(_GLIBC)))
    value = f"{worst.package} needs {wanted[worst]}, the system has {libc}"
    if version(wanted[worst].removeprefix(_GLIBC)) <= version(libc):
        return ok(value)
    fix = (
        "ktops build --force   # it was built on a newer system"
        if worst.package == "libktops"
        else sudo(host, "do-release-upgrade") + "   # or a container with a newer distribution"
    )
    return fail(value, detail=f"{worst.path.rpartition('/')[2]} does not load", fix=fix)


CHECKS = (
    Check(
        id="lib.engine",
        title="Engine package",
        section=Section.NATIVE,
        run=_engine,
        why="The engine is imported in a child process, so that a broken installation is found and "
        "the doctor goes on.",
    ),
    Check(
        id="lib.native",
        title="Native library",
        section=Section.NATIVE,
        run=_library,
        needs=("lib.engine",),
        why="It must be built from the sources that are installed, and load. It is loaded in a "
        "child process, which says which kernels it chose.",
    ),
    Check(
        id="lib.glibcxx",
        title="libstdc++ versions",
        section=Section.NATIVE,
        run=_glibcxx,
        why="A conda environment often brings an older libstdc++ than the libraries were built "
        'against, and its loader takes that one first: "version `GLIBCXX_3.4.30\' not found". The '
        "versions that each library wants are read from its ELF file and held against the "
        "libstdc++ that this interpreter really loads. libktops has its own, statically linked.",
    ),
    Check(
        id="lib.glibc",
        title="glibc versions",
        section=Section.NATIVE,
        run=_glibc,
        why="A library that was built on a newer system and copied here does not load.",
    ),
)
