"""The interpreter and its packages. What is heavy or breaks is imported in a child process."""

from __future__ import annotations

import re

from ktops_doctor.check import Check, Finding, Section, fail, gpu_lost, ok, skip
from ktops_doctor.expectations import ABSENT, dotted, needs
from ktops_doctor.fixes import pip_install
from ktops_doctor.gpus import ALL_HIDDEN, SHOW_GPUS, smi_report, visible_devices
from ktops_doctor.host import Host, ProbeOutput
from ktops_doctor.package_remedies import packages_remedy, reinstall_remedy
from ktops_doctor.target import Target
from ktops_doctor.units import version
from ktops_engine.text import joined, text

MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 13)
MIN_TORCH = (2, 9)
TORCH_TIME_LIMIT = 40.0  # a first import from a slow disk takes that long
TORCH_PATIENCE = 1.5  # when torch's libraries are loaded by then, the rest of its import can wait
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*([^;]*)")
_LOOK_AT_DEVICES = "ls -l /dev/nvidia*   # this user must be able to read and write them"
_COMPILED = ("numpy", "tokenizers", "gguf")  # in the order in which the probe imports them
_COMPARISON = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9][0-9.]*)")


def _python(host: Host, target: Target) -> Finding:
    facts = host.python()
    number = ".".join(map(str, facts.version))
    expected = needs(text("{first} to {last}", first=dotted(MIN_PYTHON), last=dotted(MAX_PYTHON)))
    if MIN_PYTHON <= facts.version[:2] <= MAX_PYTHON:
        value = f"{number} ({facts.executable})"
        return ok(value, expected)
    return fail(
        number,
        expected,
        detail=text("torch and ktops have no wheels for it"),
        fix="conda create -y -n ktops python=3.12",
    )


def torch_probe(host: Host) -> ProbeOutput:
    """What torch says of itself, imported in a child."""
    return host.probe("torch", time_limit=TORCH_TIME_LIMIT, patience=TORCH_PATIENCE)


def _torch(host: Host, target: Target) -> Finding:
    output = torch_probe(host)
    facts = output.facts
    wanted = f"torch>={dotted(MIN_TORCH)}"
    expected = needs(dotted(MIN_TORCH))
    if facts.get("torch_found") is False:
        fix = pip_install(host, wanted)
        return fail(ABSENT, expected, detail=text("the engine runs on it"), fix=fix)
    complete = "torch" in facts
    number = str(facts.get("torch") or facts.get("torch_version"))
    if not complete and ("torch_error" in facts or "torch_libraries" not in facts or output.error):
        error = output.reason("torch_error")
        return fail(
            text("installed, and does not import"),
            detail=error,
            fix="ktops doctor --only lib.glibcxx"
            if "GLIBCXX" in error or "CXXABI" in error
            else pip_install(host, "--force-reinstall", wanted),
        )
    cuda = facts.get("torch_cuda")
    built = text("built for CUDA {version}", version=cuda) if cuda else text("CPU only")
    value = joined((number, built) if complete else (number, built, text("its libraries load")))
    if version(number) >= MIN_TORCH:
        return ok(value, expected)
    return fail(
        value,
        expected,
        detail=text("the engine uses what came later"),
        fix=pip_install(host, "--upgrade", wanted),
    )


def _torch_cuda(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is None:
        return skip(text("no NVIDIA GPU that answers"))
    facts = torch_probe(host).facts
    built = str(facts.get("torch_cuda") or "")
    wheel = _wheel_for(report.cuda)
    fix = pip_install(
        host,
        "--force-reinstall",
        "torch",
        "--index-url",
        f"https://download.pytorch.org/whl/{wheel}",
    )
    if not built:
        return gpu_lost(
            target, text("torch is a CPU build"), detail=text("the GPU stays idle"), fix=fix
        )
    value = text(
        "torch is built for CUDA {built}, the driver runs {cuda}", built=built, cuda=report.cuda
    )
    # A driver runs every minor version of the major versions it knows ("minor version
    # compatibility" in NVIDIA's CUDA compatibility guide).
    if version(built)[:1] > version(report.cuda)[:1]:
        return gpu_lost(target, value, detail=text("torch finds no GPU"), fix=fix)
    if facts.get("cuda_available") is False:
        detail = str(facts.get("cuda_warning") or "") or text("torch finds no GPU")
        visible = visible_devices(host)
        if visible is None:
            return gpu_lost(target, value, detail=detail, fix=_LOOK_AT_DEVICES)
        said = f"CUDA_VISIBLE_DEVICES={visible}" if visible else ALL_HIDDEN
        return gpu_lost(target, said, detail=detail, fix=SHOW_GPUS)
    return ok(value)


def _wheel_for(driver_cuda: str) -> str:
    """The newest index of torch wheels that a driver's CUDA version can run."""
    if version(driver_cuda) >= (13,):
        return "cu130"
    return "cu128" if version(driver_cuda) >= (12, 8) else "cu126"


def _packages(host: Host, target: Target) -> Finding:
    wanted = [r for r in host.requirements("ktops") if "extra" not in r.partition(";")[2]]
    if not wanted:
        return skip(text("ktops runs from its sources, without package metadata"))
    lacking = {}
    for requirement in wanted:
        match = _REQUIREMENT.match(requirement)
        if match is None or match[1] == "torch":  # py.torch looks at it more closely
            continue
        installed = host.package_version(match[1])
        if installed is None or not meets(installed, match[2]):
            lacking[match[1]] = f"{match[1]}{match[2].strip().replace(' ', '')}"
    if not lacking:
        return ok(text("{count} packages as ktops wants them", count=len(wanted)))
    return fail(
        text("missing or of another version: {packages}", packages=", ".join(lacking.values())),
        detail=text("the engine or its server does not start"),
        fix=pip_install(host, *lacking.values()),
        remedy=packages_remedy(host, lacking),
    )


def meets(installed: str, specifier: str) -> bool:
    """Whether a version meets a specifier such as '>=1.26,<3'; only what ktops uses is read."""
    have = version(installed)
    for operator, number in _COMPARISON.findall(specifier):
        want = version(number)
        width = max(len(have), len(want))
        left, right = (v + (0,) * (width - len(v)) for v in (have, want))
        met = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
        }[operator]
        if not met:
            return False
    return True


def _imports(host: Host, target: Target) -> Finding:
    output = host.probe("imports")
    good, bad = [], []
    for name, facts in output.facts.items():
        if isinstance(facts, dict) and "error" in facts:
            bad.append((name, str(facts["error"])))
        elif isinstance(facts, dict):
            good.append(f"{name} {facts.get('version', '')}".strip())
    if output.error:  # it ended in the middle of the one that comes next
        bad.append((_COMPILED[min(len(output.facts), len(_COMPILED) - 1)], output.error))
    if not bad:
        return ok(", ".join(good))
    names = [name for name, _ in bad]
    return fail(
        text("{packages} does not import", packages=", ".join(names)),
        detail=bad[0][1],
        fix=pip_install(host, "--force-reinstall", *names),
        remedy=reinstall_remedy(host, names),
    )


CHECKS = (
    Check(
        id="py.version",
        title=text("Python"),
        section=Section.PYTHON,
        run=_python,
        why="ktops and torch have wheels for Python 3.11, 3.12 and 3.13.",
    ),
    Check(
        id="py.packages",
        title=text("Packages that ktops wants"),
        section=Section.PYTHON,
        run=_packages,
        why="The versions of all dependencies are read from their metadata; nothing is imported.",
    ),
    Check(
        id="py.imports",
        title=text("Compiled packages"),
        section=Section.PYTHON,
        run=_imports,
        why="numpy, tokenizers and gguf are imported in a child process: a wheel for another "
        "Python, or one that is half installed, shows only then.",
    ),
    Check(
        id="py.torch",
        title=text("torch"),
        section=Section.PYTHON,
        run=_torch,
        time_limit=TORCH_TIME_LIMIT + 5,
        why="torch is imported in a child process, so that one that crashes is found and named.",
    ),
    Check(
        id="py.torch_cuda",
        title=text("torch and the driver"),
        section=Section.PYTHON,
        run=_torch_cuda,
        needs=("py.torch",),
        time_limit=TORCH_TIME_LIMIT + 5,
        why="torch is built for one CUDA version. A driver runs its own major version and all "
        "before it; a build for a later one finds no GPU, a CPU build neither.",
    ),
)
