"""The native library: built, current, loadable, and at peace with libstdc++ and glibc."""

from __future__ import annotations

from collections.abc import Mapping

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.fixes import build_remedy, remark, sudo
from ktops_doctor.host import Host
from ktops_doctor.libraries import (
    Library,
    defined_versions,
    libraries,
    loaded_libstdcxx,
    newest,
)
from ktops_doctor.libstdcxx import install_libstdcxx, newer_libstdcxx
from ktops_doctor.target import Target
from ktops_doctor.units import version
from ktops_engine.text import Text, joined, text

_GLIBCXX = "GLIBCXX_"
_GLIBC = "GLIBC_"
_REBUILD = "ktops build --force"
_UNKNOWN = text("no known version")


def _engine(host: Host, target: Target) -> Finding:
    output = host.probe("native")
    if "built" in output.facts or "find_error" in output.facts:
        return ok(text("ktops_engine imports"))
    return fail(
        text("ktops_engine does not import"),
        detail=output.reason("import_error"),
        fix=remark("./install.sh", text("in the folder that ktops was installed from")),
    )


def _library(host: Host, target: Target) -> Finding:
    output = host.probe("native")
    facts = output.facts
    if "find_error" in facts:
        return fail(
            text("its build folder cannot be read"),
            detail=str(facts["find_error"]),
            fix=_REBUILD,
        )
    if not facts.get("built"):
        return warn(
            _what_is_wrong(facts),
            detail=text("the next `ktops serve` builds it first, which takes up to a minute"),
            fix="ktops build",
            remedy=build_remedy(host),
        )
    if "isa" not in facts:
        error = output.reason("load_error")
        old = _GLIBCXX in error or "CXXABI_" in error  # lib.glibcxx says what helps
        return fail(
            text("{library} does not load", library=facts["path"]),
            detail=error,
            fix="ktops doctor --only lib.glibcxx" if old else _REBUILD,
            remedy=None if old else build_remedy(host, "--force"),
        )
    return ok(
        text(
            "built {date} by {compiler}, {isa} kernels",
            date=str(facts["built_at"])[:10],
            compiler=facts["compiler"],
            isa=facts["isa"],
        )
    )


def _what_is_wrong(facts: Mapping[str, object]) -> Text:
    """Of a library that cannot be used as it lies there, and is not loaded for that reason."""
    path, size, wanted = (facts.get(name) for name in ("damaged", "bytes", "wanted_bytes"))
    if path is None:
        return text("not built, or built from other sources")
    if size is None:
        return text("{library} was deleted", library=path)
    return text(
        "{library} is damaged: {size} of {wanted} bytes", library=path, size=size, wanted=wanted
    )


def _glibcxx(host: Host, target: Target) -> Finding:
    found = libraries(host)
    wanting = [library for library in found if library.needs]
    loaded = loaded_libstdcxx(host)
    if loaded is None:
        if not wanting:
            return ok(_with_own(found, [text("no libstdc++ here")]))
        return fail(
            text(
                "{packages} needs libstdc++, and this Python finds none",
                packages=_packages(wanting),
            ),
            detail=text("it does not load"),
            fix=install_libstdcxx(host),
        )
    defined = defined_versions(host, loaded)
    end = newest(defined, _GLIBCXX)
    missing = [library for library in wanting if library.needs - defined]
    if not missing:
        most = newest([name for library in wanting for name in library.needs], _GLIBCXX)
        has = text("{library} has {version}", library=loaded, version=end or _UNKNOWN)
        if wanting:
            has = text(
                "{packages} needs {version}, {has}",
                packages=_packages(wanting),
                version=most,
                has=has,
            )
        return ok(_with_own(found, [has]))
    first = missing[0]
    lacking = newest(first.needs - defined, _GLIBCXX) or min(first.needs - defined)
    cure = newer_libstdcxx(host, loaded, first)
    return fail(
        text(
            "{packages} needs {version}; this Python loads {library}, which ends at {end}",
            packages=_packages(missing),
            version=lacking,
            library=loaded,
            end=end.removeprefix(_GLIBCXX) or _UNKNOWN,
        ),
        detail=text("{library} does not load", library=_name(first)),
        fix=cure.line,
        remedy=cure.remedy,
    )


def _packages(found: list[Library]) -> str:
    return ", ".join(dict.fromkeys(library.package for library in found))


def _with_own(found: list[Library], parts: list[str]) -> Text:
    own = [library for library in found if library.package == "libktops"]
    if own and not own[0].needs:
        parts = [text("libktops has its own (static)"), *parts]
    return joined(parts, "; ")


def _name(library: Library) -> str:
    return library.path.rpartition("/")[2]


def _glibc(host: Host, target: Target) -> Finding:
    libc = host.platform().libc.removeprefix("glibc ")
    found = [library for library in libraries(host) if library.glibc_needs]
    if not found:
        return skip(text("neither the native library nor torch is there"))
    wanted = {library: newest(library.glibc_needs, _GLIBC) for library in found}
    worst = max(found, key=lambda library: version(wanted[library].removeprefix(_GLIBC)))
    value = text(
        "{package} needs {version}, the system has {libc}",
        package=worst.package,
        version=wanted[worst],
        libc=libc,
    )
    if version(wanted[worst].removeprefix(_GLIBC)) <= version(libc):
        return ok(value)
    detail = text("{library} does not load", library=_name(worst))
    if worst.package == "libktops":
        fix = remark(_REBUILD, text("it was built on a newer system"))
        return fail(value, detail=detail, fix=fix, remedy=build_remedy(host, "--force"))
    upgrade = sudo(host, "do-release-upgrade")
    fix = remark(upgrade, text("or a container with a newer distribution"))
    return fail(value, detail=detail, fix=fix)


CHECKS = (
    Check(
        id="lib.engine",
        title=text("Engine package"),
        section=Section.NATIVE,
        run=_engine,
        why="The engine is imported in a child process, so that a broken installation is found and "
        "the doctor goes on.",
    ),
    Check(
        id="lib.native",
        title=text("Native library"),
        section=Section.NATIVE,
        run=_library,
        needs=("lib.engine",),
        why="It must be built from the sources that are installed, and load. It is loaded in a "
        "child process, which says which kernels it chose.",
    ),
    Check(
        id="lib.glibcxx",
        title=text("libstdc++ versions"),
        section=Section.NATIVE,
        run=_glibcxx,
        why="A conda environment often brings an older libstdc++ than the libraries were built "
        'against, and its loader takes that one first: "version `GLIBCXX_3.4.30\' not found". The '
        "versions that each library wants are read from its ELF file and held against the "
        "libstdc++ that this interpreter really loads. libktops has its own, statically linked.",
    ),
    Check(
        id="lib.glibc",
        title=text("glibc versions"),
        section=Section.NATIVE,
        run=_glibc,
        why="A library that was built on a newer system and copied here does not load.",
    ),
)
