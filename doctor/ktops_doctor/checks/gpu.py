"""The GPU: is there one, does its driver answer, is it new enough, is its link whole?"""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, gpu_lost, ok, skip, warn
from ktops_doctor.checks.gpu_memory import VRAM
from ktops_doctor.expectations import dotted, needs, should_be
from ktops_doctor.fixes import in_container, install, remark, sudo
from ktops_doctor.gpus import (
    MIN_CUDA,
    SMI_TIME_LIMIT,
    Gpu,
    pci_gpus,
    smi_output,
    smi_report,
    toolkit_release,
)
from ktops_doctor.host import SILENT, Host
from ktops_doctor.target import Target
from ktops_doctor.units import version
from ktops_engine.text import text

_WITH_GPUS = "docker run --gpus all IMAGE"
MIN_DRIVER = "530"  # the first branch that runs CUDA 12.1
_NO_GPU = text("no NVIDIA GPU")
_TIME_LIMIT = SMI_TIME_LIMIT + 5
_OLD_ARCHITECTURES = frozenset({"Kepler", "Maxwell", "Pascal", "Volta", "Turing"})


def _device(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is not None:
        names = [gpu.name for gpu in report.gpus]
        return ok(", ".join(f"{names.count(n)} x {n}" for n in dict.fromkeys(names)))
    on_bus = pci_gpus(host)
    if on_bus:
        return ok(text("an NVIDIA GPU at {places}", places=", ".join(on_bus)))
    if not target.gpu_required:
        return ok(text("no NVIDIA GPU, and {model} needs none", model=target.name))
    return gpu_lost(
        target,
        _NO_GPU,
        text("needs one"),
        detail=text("attention and the shared expert are to run on it"),
        fix=remark(_WITH_GPUS, text("a container sees only GPUs that are passed to it"))
        if in_container(host)
        else remark(
            "lspci -nn | grep -i nvidia", text("empty: not seated, or not passed to this VM")
        ),
    )


def _driver(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is not None:
        return ok(text("driver {version}", version=report.driver))
    if not pci_gpus(host):
        return skip(_NO_GPU)
    output = smi_output(host)
    if output.timed_out:
        return gpu_lost(
            target,
            text("nvidia-smi gave no answer within {seconds:.0f} s", seconds=SMI_TIME_LIMIT),
            detail=text("the driver hangs"),
            fix=sudo(host, "dmesg | grep -i 'nvrm\\|xid' | tail"),
        )
    if output.status is None:
        return gpu_lost(
            target,
            text("nvidia-smi is not installed"),
            detail=text("no driver"),
            fix=_install(host),
        )
    said = " ".join((output.stdout + output.stderr).split())
    if "version mismatch" in said:
        fix = remark(
            sudo(host, "reboot"), text("the driver was updated while the old one was running")
        )
    elif in_container(host):
        fix = remark(_WITH_GPUS, text("the driver of the host must be passed on"))
    else:
        fix = remark(
            sudo(host, "modprobe nvidia"),
            text("if that fails: {command}", command="dmesg | grep -i nvidia"),
        )
    return gpu_lost(
        target,
        text("nvidia-smi finds no GPU"),
        detail=said or SILENT,
        fix=fix,
    )


def _install(host: Host) -> str:
    if in_container(host):
        return remark(_WITH_GPUS, text("the driver of the host must be passed on"))
    return install(
        host,
        debian="nvidia-driver",
        fedora="nvidia-driver",
        suse="nvidia-open-driver-G06-signed",
        arch="nvidia-open",
        conda="cuda-compat",
    )


def _cuda(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is None:
        return skip(_NO_GPU)
    expected = needs(dotted(MIN_CUDA))
    value = text(
        "driver {driver} runs CUDA {cuda}",
        driver=report.driver,
        cuda=report.cuda or text("of unknown version"),
    )
    if version(report.cuda) >= MIN_CUDA:
        return ok(value, expected)
    return gpu_lost(
        target,
        value,
        expected,
        detail=text(
            "torch finds no GPU with it; driver {driver} or newer is wanted", driver=MIN_DRIVER
        ),
        fix=_install(host),
    )


def _architecture(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is None:
        return skip(_NO_GPU)
    old = [gpu for gpu in report.gpus if gpu.architecture in _OLD_ARCHITECTURES]
    names = ", ".join(dict.fromkeys(gpu.architecture or gpu.name for gpu in report.gpus))
    if len(old) < len(report.gpus):
        return ok(names)
    return warn(
        names,
        should_be(text("Ampere or newer")),
        detail=text("it has no bf16, in which the GPU kernels compute"),
        fix=remark(
            "nvidia-smi --query-gpu=name,compute_cap --format=csv", text("8.0 or more is wanted")
        ),
    )


def _link(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is None:
        return skip(_NO_GPU)
    known = [gpu for gpu in report.gpus if gpu.lanes and gpu.max_lanes]
    if not known:
        return skip(text("the driver does not say"))
    worst = min(known, key=lambda gpu: gpu.lanes / gpu.max_lanes)
    if worst.lanes >= worst.max_lanes:
        return ok(_link_text(worst))
    return warn(
        _link_text(worst),
        should_be(f"x{worst.max_lanes}"),
        detail=text("prompts stream the experts over it and take as much longer"),
        fix=remark(
            sudo(host, f"lspci -vv -s {_short(worst.bus_id)} | grep -i lnk"),
            text("then reseat the card, or move it to a wider slot"),
        ),
    )


def _link_text(gpu: Gpu) -> str:
    # The generation falls while a GPU idles, so only its maximum says something.
    generation = f"PCIe {gpu.max_generation} " if gpu.max_generation else "PCIe "
    return f"{generation}x{gpu.lanes}"


def _short(bus_id: str) -> str:
    """nvidia-smi's 00000000:17:00.0 as lspci wants it: 0000:17:00.0."""
    domain, colon, rest = bus_id.partition(":")
    return f"{domain[-4:]}{colon}{rest}".lower()


def _toolkit(host: Host, target: Target) -> Finding:
    release = toolkit_release(host)
    if not release:
        return skip(text("nvcc is not installed, and nothing here needs it"))
    return ok(text("CUDA toolkit {version}, which nothing here needs", version=release))


CHECKS = (
    Check(
        id="gpu.device",
        title=text("NVIDIA GPU"),
        section=Section.GPU,
        run=_device,
        time_limit=_TIME_LIMIT,
        why="The GPU keeps what every token uses: attention, shared experts, dense layers, output "
        "head and cache. It is looked for on the PCI bus too, so that a missing driver is not "
        "mistaken for a missing card.",
    ),
    Check(
        id="gpu.driver",
        title=text("GPU driver"),
        section=Section.GPU,
        run=_driver,
        time_limit=_TIME_LIMIT,
        needs=("gpu.device",),
        why="nvidia-smi must answer. It does not when the driver is missing, not loaded, hangs, or "
        "was updated without a reboot.",
    ),
    Check(
        id="gpu.cuda",
        title=text("CUDA version of the driver"),
        section=Section.GPU,
        run=_cuda,
        needs=("gpu.driver",),
        why="torch brings its own CUDA runtime; the driver must be new enough to run it. The "
        "toolkit does not matter for this.",
    ),
    VRAM,
    Check(
        id="gpu.arch",
        title=text("GPU generation"),
        section=Section.GPU,
        run=_architecture,
        needs=("gpu.driver",),
        why="GPUs before Ampere have no bf16 arithmetic.",
    ),
    Check(
        id="gpu.link",
        title=text("PCIe link"),
        section=Section.GPU,
        run=_link,
        needs=("gpu.driver",),
        why="A card that is not seated well, or in a narrow slot, runs with fewer lanes than it "
        "has. Long prompts stream all experts over this link.",
    ),
    Check(
        id="gpu.toolkit",
        title=text("CUDA toolkit"),
        section=Section.GPU,
        run=_toolkit,
        why="Named for those who look for it: nothing in ktops needs nvcc.",
    ),
)
