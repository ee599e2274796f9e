"""What compiles the native library: compiler, assembler, CMake, ninja."""

from __future__ import annotations

import re

from ktops_doctor.check import Check, Finding, Section, fail, ok, warn
from ktops_doctor.expectations import dotted, needs, should_be
from ktops_doctor.fixes import install, pip_install
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.units import version
from ktops_engine.text import Text, joined, text

MIN_GCC = 11
_NEWEST_GCC = 16  # versioned compilers are looked for from here down, as the build does
MIN_ASSEMBLER = (2, 35)  # the first GNU assembler that knows AMX
MIN_CMAKE = (3, 25)
_NOT_BUILT = text("the native library cannot be built")


def _compiler(host: Host, target: Target) -> Finding:
    expected = needs(f"g++ {MIN_GCC}")
    found: list[str] = []
    for name in ("g++", *(f"g++-{major}" for major in range(_NEWEST_GCC, MIN_GCC - 1, -1))):
        if host.which(name) is None:
            continue
        output = host.run(name, "-dumpfullversion", "-dumpversion")
        number = version(output.stdout)
        if output.ok and number[:1] >= (MIN_GCC,):
            return ok(" ".join((name, output.stdout.strip())), expected)
        found.append(f"{name} {output.stdout.strip()}" if number else _broken(name))
    if host.probe("native").facts.get("isa"):
        detail = text("the native library is built already, and could not be built again")
        return warn(_what(found), expected, detail=detail, fix=_install_compiler(host, found))
    return fail(_what(found), expected, detail=_NOT_BUILT, fix=_install_compiler(host, found))


def _what(found: list[str]) -> Text:
    return joined(found) if found else _absent("g++")


def _absent(program: str) -> Text:
    return text("{program} is not installed", program=program)


def _broken(program: str) -> Text:
    return text("{program} does not work", program=program)


def _install_compiler(host: Host, found: list[str]) -> str:
    if found:  # the distribution's own is too old; conda has a new one for every distribution
        return "conda install -y -c conda-forge gxx"
    return install(host, debian="g++", fedora="gcc-c++", suse="gcc-c++", arch="gcc", conda="gxx")


def _assembler(host: Host, target: Target) -> Finding:
    output = host.run("as", "--version")
    expected = should_be(dotted(MIN_ASSEMBLER))
    first = output.stdout.partition("\n")[0]
    match = re.search(r"\d+(\.\d+)+", first)
    if not output.ok or match is None:
        return warn(
            text("the GNU assembler is not found"),
            expected,
            detail=_NOT_BUILT,
            fix=_binutils(host),
        )
    value = f"GNU as {match[0]}"
    if version(match[0]) >= MIN_ASSEMBLER:
        return ok(value, expected)
    return warn(
        value,
        expected,
        detail=text("it does not know AMX: prompts are computed slower on CPUs that have it"),
        fix="conda install -y -c conda-forge binutils_linux-64",
    )


def _binutils(host: Host) -> str:
    return install(
        host,
        debian="binutils",
        fedora="binutils",
        suse="binutils",
        arch="binutils",
        conda="binutils_linux-64",
    )


def _cmake(host: Host, target: Target) -> Finding:
    path = _tool(host, "cmake")
    expected = needs(dotted(MIN_CMAKE))
    fix = pip_install(host, f"cmake>={dotted(MIN_CMAKE)}")
    if path is None:
        return fail(_absent("cmake"), expected, detail=_NOT_BUILT, fix=fix)
    output = host.run(path, "--version")
    number = output.stdout.partition("version ")[2].partition("\n")[0].strip()
    value = f"cmake {number}"
    if output.ok and version(number) >= MIN_CMAKE:
        return ok(value, expected)
    found = value if number else _broken(path)
    return fail(found, expected, detail=_NOT_BUILT, fix=fix)


def _ninja(host: Host, target: Target) -> Finding:
    path = _tool(host, "ninja")
    fix = pip_install(host, "ninja")
    if path is None:
        return fail(_absent("ninja"), detail=_NOT_BUILT, fix=fix)
    output = host.run(path, "--version")
    if output.ok:
        value = f"ninja {output.stdout.strip()}"
        return ok(value)
    return fail(_broken(path), detail=_NOT_BUILT, fix=fix)


def _tool(host: Host, name: str) -> str | None:
    """A build tool: from the interpreter's own environment first, as the build takes it."""
    own = f"{host.python().executable.rpartition('/')[0]}/{name}"
    return own if host.exists(own) else host.which(name)


CHECKS = (
    Check(
        id="cc.version",
        title=text("C++ compiler"),
        section=Section.NATIVE,
        run=_compiler,
        why="The kernels are C++20 and are compiled on this machine once, with g++ 11 or newer; "
        "g++-11 and later beside an older g++ will do.",
    ),
    Check(
        id="cc.assembler",
        title=text("Assembler"),
        section=Section.NATIVE,
        run=_assembler,
        why="AMX instructions need GNU binutils 2.35; without them that kernel is left out.",
    ),
    Check(
        id="cc.cmake",
        title=text("CMake"),
        section=Section.NATIVE,
        run=_cmake,
        why="Builds the native library. It comes with ktops, from PyPI.",
    ),
    Check(
        id="cc.ninja",
        title=text("ninja"),
        section=Section.NATIVE,
        run=_ninja,
        why="Runs the build. It comes with ktops, from PyPI.",
    ),
)
