"""NVIDIA GPUs as nvidia-smi's XML report and the PCI bus describe them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from ktops_doctor.host import CommandOutput, Host
from ktops_engine.text import text

MIN_CUDA = (12, 1)
_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
SMI_COMMAND = ("nvidia-smi", "-q", "-x")
SMI_TIME_LIMIT = 20.0  # eight GPUs without persistence mode take most of it
_PCI = "/sys/bus/pci/devices"
_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_MIB = 1 << 20
ALL_HIDDEN = text("CUDA_VISIBLE_DEVICES is set and empty, which hides every GPU")
SHOW_GPUS = f"unset {_VISIBLE_DEVICES}"


@dataclass(frozen=True)
class Gpu:
    """One GPU; `index` and `uuid` are nvidia-smi's names of it. Widths are PCIe lanes, 0
    where the driver does not say."""

    index: int
    uuid: str
    name: str
    architecture: str
    bus_id: str
    total_bytes: int
    free_bytes: int
    lanes: int
    max_lanes: int
    generation: int
    max_generation: int


@dataclass(frozen=True)
class SmiReport:
    """`cuda` is the highest CUDA version the driver can run, '' when it does not say; `gpus` are
    one or more."""

    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]


def smi_output(host: Host) -> CommandOutput:
    """nvidia-smi's whole report, asked for once."""
    return host.run(*SMI_COMMAND, time_limit=SMI_TIME_LIMIT)


def smi_report(host: Host) -> SmiReport | None:
    """The report, or None when nvidia-smi is missing, fails, or names no GPU."""
    output = smi_output(host)
    if not output.ok:
        return None
    try:
        root = ElementTree.fromstring(output.stdout)
    except ElementTree.ParseError:
        return None
    gpus = tuple(_gpu(index, node) for index, node in enumerate(root.findall("gpu")))
    if not gpus:
        return None
    return SmiReport(_text(root, "driver_version"), _text(root, "cuda_version"), gpus)


def toolkit_release(host: Host) -> str:
    """The version of the CUDA toolkit whose nvcc is on the PATH, '' when there is none."""
    output = host.run("nvcc", "--version")
    return output.stdout.partition("release ")[2].partition(",")[0] if output.ok else ""


def visible_devices(host: Host) -> str | None:
    """CUDA_VISIBLE_DEVICES, None when it is not set."""
    return host.env(_VISIBLE_DEVICES) if host.is_set(_VISIBLE_DEVICES) else None


def pci_gpus(host: Host) -> list[str]:
    """Bus addresses of NVIDIA display controllers, whether or not a driver is there."""
    return [
        name
        for name in host.list_dir(_PCI)
        if (host.read_text(f"{_PCI}/{name}/vendor") or "").strip() == _NVIDIA
        and (host.read_text(f"{_PCI}/{name}/class") or "").startswith(_DISPLAY_CLASS)
    ]


def _gpu(index: int, node: ElementTree.Element) -> Gpu:
    link = "pci/pci_gpu_link_info"
    return Gpu(
        index=index,
        uuid=_text(node, "uuid"),
        name=_text(node, "product_name"),
        architecture=_text(node, "product_architecture"),
        bus_id=_text(node, "pci/pci_bus_id"),
        total_bytes=_number(node, "fb_memory_usage/total") * _MIB,
        free_bytes=_number(node, "fb_memory_usage/free") * _MIB,
        lanes=_number(node, f"{link}/link_widths/current_link_width"),
        max_lanes=_number(node, f"{link}/link_widths/max_link_width"),
        generation=_number(node, f"{link}/pcie_gen/current_link_gen"),
        max_generation=_number(node, f"{link}/pcie_gen/max_link_gen"),
    )


def _text(node: ElementTree.Element, path: str) -> str:
    found = (node.findtext(path) or "").strip()
    return "" if found == "N/A" else found


def _number(node: ElementTree.Element, path: str) -> int:
    """The number in '81559 MiB' or '16x', 0 where there is none."""
    digits = _text(node, path).partition(" ")[0].rstrip("x")
    return int(digits) if digits.isdigit() else 0
