"""Which libraries will be loaded, what they want of libstdc++ and glibc, and what they get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ktops_doctor.elf import ElfError
from ktops_doctor.host import Host
from ktops_doctor.units import version

LIBSTDCXX = "libstdc++.so.6"
_SYSTEM_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64")


@dataclass(frozen=True)
class Library:
    """A shared library and the package it belongs to ('libktops', 'torch')."""

    package: str
    path: str
    needs: frozenset[str]  # of libstdc++
    glibc_needs: frozenset[str]


def libraries(host: Host) -> list[Library]:
    """The native library and torch's, as far as they are there and readable."""
    return [library for package, path in _paths(host) if (library := _read(host, package, path))]


def loaded_libstdcxx(host: Host) -> str | None:
    """The libstdc++ that this interpreter loads.

    The dynamic loader is asked in a child; where that gave no answer, the places are searched in
    its order: LD_PRELOAD, LD_LIBRARY_PATH, the interpreter's own conda environment, the system.
    """
    answer = host.probe("libraries").facts.get("libstdcxx")
    path = answer.get("path") if isinstance(answer, dict) else None
    if isinstance(path, str):
        return path
    return next(filter(host.exists, _candidates(host)), None)


def system_libstdcxx(host: Host) -> str | None:
    """The distribution's libstdc++."""
    places = (f"{folder}/{LIBSTDCXX}" for folder in _SYSTEM_FOLDERS)
    return next(filter(host.exists, places), None)


def defined_versions(host: Host, path: str) -> frozenset[str]:
    """GLIBCXX and CXXABI versions that the libstdc++ at `path` has; none when it is damaged."""
    try:
        versions = host.elf(path)
    except ElfError:
        return frozenset()
    return versions.defines if versions else frozenset()


def conda_prefix(host: Host, library: str) -> str | None:
    """The conda environment that `library` belongs to (PREFIX/lib/...), if any."""
    prefix, slash, _ = library.rpartition("/lib/")
    return prefix if slash and host.exists(f"{prefix}/conda-meta") else None


def newest(names: Iterable[str], family: str) -> str:
    """The highest of `names` in a family: GLIBCXX_3.4.30 of those that start with GLIBCXX_."""
    members = [name for name in names if name.startswith(family) and version(name[len(family) :])]
    return max(members, key=lambda name: version(name[len(family) :]), default="")


def _paths(host: Host) -> Iterator[tuple[str, str]]:
    native = host.probe("native").facts.get("path")
    if isinstance(native, str):
        yield "libktops", native
    packages = host.probe("libraries").facts.get("libraries")
    if isinstance(packages, dict):
        for package, paths in packages.items():
            for path in paths:
                yield package, path


def _read(host: Host, package: str, path: str) -> Library | None:
    """A damaged library is left to the check that loads it."""
    try:
        versions = host.elf(path)
    except ElfError:
        return None
    if versions is None:
        return None
    of_c = (names for library, names in versions.needs.items() if library != LIBSTDCXX)
    glibc = frozenset(name for names in of_c for name in names if name.startswith("GLIBC_"))
    return Library(package, path, versions.needs.get(LIBSTDCXX, frozenset()), glibc)


def _candidates(host: Host) -> Iterator[str]:
    for entry in host.env("LD_PRELOAD").replace(":", " ").split():
        if entry.rpartition("/")[2].startswith("libstdc++.so"):
            yield entry
    folders = [folder for folder in host.env("LD_LIBRARY_PATH").split(":") if folder]
    python = host.python()
    prefixes = (python.prefix, python.base_prefix)
    folders += [f"{prefix}/lib" for prefix in prefixes if host.exists(f"{prefix}/conda-meta")]
    for folder in (*folders, *_SYSTEM_FOLDERS):
        yield f"{folder}/{LIBSTDCXX}"
