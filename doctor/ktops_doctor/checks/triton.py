"""Triton, which compiles the GPU kernels when they are first used: the package, what it calls, and
whether a kernel comes out right."""

from __future__ import annotations

import re

from ktops_doctor.check import Check, Finding, Section, gpu_lost, ok, skip, warn
from ktops_doctor.checks.python import meets, torch_probe
from ktops_doctor.expectations import ABSENT, dotted, needs, should_be
from ktops_doctor.fixes import install, pip_install, remark
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.units import version
from ktops_engine.text import Text, joined, text

MIN_TRITON = (3, 5)
_TIME_LIMIT = 20.0  # a first import from a slow disk
_KERNEL_TIME_LIMIT = 120.0
_BF16_ERROR = 2.0**-8  # relative, twice what rounding the result to bfloat16 can cost
_IDLE = text("the GPU stays idle")
_FAILS = text("the server ends when it compiles the GPU kernels")
_PINNED = re.compile(r"triton\s*([=<>!~][^;]*)")


def _triton(host: Host, target: Target) -> Finding:
    if not torch_probe(host).facts.get("torch_cuda"):
        return skip(text("torch is a CPU build"))
    output = host.probe("triton", time_limit=_TIME_LIMIT)
    pinned = _pinned_by_torch(host)
    wanted = f"triton{pinned or f'>={dotted(MIN_TRITON)}'}"
    if output.facts.get("triton_found") is False:
        return gpu_lost(target, ABSENT, detail=_IDLE, fix=pip_install(host, wanted))
    if "triton" not in output.facts:
        return gpu_lost(
            target,
            text("installed, and does not import"),
            detail=output.reason("triton_error"),
            fix=pip_install(host, "--force-reinstall", wanted),
        )
    number = str(output.facts["triton"])
    fix = pip_install(host, wanted)
    if version(number) < MIN_TRITON:
        needed = needs(dotted(MIN_TRITON))
        detail = text("the GPU kernels use what came later")
        return gpu_lost(target, number, needed, detail=detail, fix=fix)
    if not meets(number, pinned):
        detail = text("torch is made for that one")
        return warn(number, should_be(pinned.lstrip("=")), detail=detail, fix=fix)
    return ok(number, needs(dotted(MIN_TRITON)))


def _pinned_by_torch(host: Host) -> str:
    """The version that torch's metadata asks for, such as '==3.6.0'; '' when it asks for none."""
    matches = map(_PINNED.match, host.requirements("torch"))
    return next((match[1].strip() for match in matches if match), "")


def _compiler(host: Host, target: Target) -> Finding:
    """A warning at most: what is in Triton's cache already needs no compiler."""
    facts = host.probe("triton", time_limit=_TIME_LIMIT).facts
    compiler, error = str(facts.get("compiler") or ""), str(facts.get("compiler_error") or "")
    gcc = install(host, debian="gcc", fedora="gcc", suse="gcc", arch="gcc", conda="gcc")
    if not compiler:
        return warn(text("neither gcc nor clang is installed"), detail=_FAILS, fix=gcc)
    if error:
        fix = _install_headers(host) if "Python.h" in error else gcc
        return warn(
            text("{compiler} does not work ({reason})", compiler=compiler, reason=error),
            detail=_FAILS,
            fix="unset CC" if host.env("CC") else fix,
        )
    home = host.env("TRITON_HOME") or "~"
    folder = host.env("TRITON_CACHE_DIR") or f"{home.rstrip('/')}/.triton/cache"
    disk = host.disk(folder)
    if disk is None or not disk.writable:
        return warn(
            text("{path} may not be written", path=disk.path if disk else folder),
            detail=_FAILS,
            fix=remark(
                "export TRITON_CACHE_DIR=/path", text("a folder that can be written, with room")
            ),
        )
    return ok(joined((compiler, text("compiled kernels in {folder}", folder=folder))))


def _install_headers(host: Host) -> str:
    major, minor, _ = host.python().version
    return install(
        host,
        debian=f"python{major}.{minor}-dev",
        fedora=f"python{major}.{minor}-devel",
        suse=f"python{major}{minor}-devel",
        arch="python",
        conda=f"python={major}.{minor}",
    )


def _kernel(host: Host, target: Target) -> Finding:
    output = host.probe("gpu_kernel", time_limit=_KERNEL_TIME_LIMIT)
    seconds, error = output.facts.get("seconds"), output.facts.get("relative_error")
    if not isinstance(seconds, float) or not isinstance(error, float):
        return gpu_lost(
            target,
            text("a GPU kernel does not compile or run"),
            detail=output.reason(),
            fix="ktops doctor --only py.torch_cuda,py.triton,cc.triton",
        )
    if not error <= _BF16_ERROR:  # also for a NaN
        return gpu_lost(
            target,
            text("a GPU kernel computes with an error of {error:.1e}", error=error),
            _at_most(_BF16_ERROR),
            detail=text("what this machine computes is wrong: every model would talk nonsense"),
            fix=remark("rm -r ~/.triton/cache", text("then once more; wrong again: test the GPU")),
        )
    return ok(text("compiled and ran in {seconds:.1f} s", seconds=seconds))


def _at_most(error: float) -> Text:
    return should_be(text("at most {error:.1e}", error=error))


TRITON = Check(
    id="py.triton",
    title=text("Triton"),
    section=Section.PYTHON,
    run=_triton,
    needs=("py.torch_cuda",),
    time_limit=_TIME_LIMIT + 5,
    why="The GPU kernels are written in Triton, which comes with torch's CUDA builds. It is "
    "imported in a child process, and its version held against the one that torch's metadata asks "
    "for. Without it everything is computed on the CPU.",
)
COMPILER = Check(
    id="cc.triton",
    title=text("C compiler for Triton"),
    section=Section.NATIVE,
    run=_compiler,
    needs=("py.triton",),
    time_limit=_TIME_LIMIT + 5,
    why="When Triton first talks to the GPU it compiles a small C module: with the compiler that "
    "CC names, else gcc or clang, against this Python's headers. What it compiles is kept in "
    "~/.triton/cache, or where TRITON_CACHE_DIR or TRITON_HOME say.",
)
KERNEL = Check(
    id="gpu.kernel",
    title=text("A GPU kernel"),
    section=Section.GPU,
    run=_kernel,
    needs=("py.triton",),
    deep=True,
    time_limit=_KERNEL_TIME_LIMIT + 5,
    why="One of the engine's kernels (RMS norm) is compiled anew in a child process, run on the "
    "GPU, and held against float64.",
)
