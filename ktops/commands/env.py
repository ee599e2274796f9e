"""`ktops env`: what is installed and what the machine is, to paste into a report."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

import typer

from ktops.commandline import output_of
from ktops.commands.version import ktops_version
from ktops.settings import ORIGIN_DEFAULT, Settings, load_settings
from ktops.units import format_bytes
from ktops_engine.errors import KtopsError

EXAMPLES = (
    ("ktops env", "a block of text for an issue"),
    ("ktops env --json", "the same for a program"),
)

PACKAGES = (
    "torch",
    "triton",
    "flash-attn",
    "transformers",
    "gguf",
    "tokenizers",
    "fastapi",
    "uvicorn",
    "typer",
)
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
NVIDIA_SMI_TIMEOUT_S = 10
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
MASK = "(set, not shown)"
URL_USER = re.compile(r"//[^/@\s]+@")
VARIABLES = ("KTOPS_", "CUDA_", "HF_", "MODELSCOPE_", "OMP_", "USE_NUMA")


def env(ctx: typer.Context) -> None:
    """Describe this installation and this machine. Keys and tokens are never shown."""
    facts: dict[str, object] = {
        "ktops": ktops_version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "os": _os_name(),
        "kernel": platform.release(),
        **_machine(),
        "gpu": _gpus(),
        "native": _native(),
        "packages": {name: _package(name) for name in PACKAGES},
        "settings": _settings(),
        "environment": _environment(os.environ),
    }
    output_of(ctx).result(facts, human=_lines(facts), quiet=_lines(facts))


def _lines(facts: Mapping[str, object]) -> list[str]:
    """The facts as two columns; a nested fact takes a line for each of its parts."""
    width = max(map(len, facts)) + 2
    lines = []
    for name, value in facts.items():
        items = _items(value) or ["none"]
        lines += [f"{name if i == 0 else '':<{width}}{item}" for i, item in enumerate(items)]
    return lines


def _items(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key} {_plain(part)}" for key, part in value.items() if part is not None]
    if isinstance(value, list):
        return [str(part) for part in value]
    return [str(value)]


def _plain(part: object) -> str:
    return f"= {part['value']}  ({part['origin']})" if isinstance(part, Mapping) else str(part)


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _machine() -> dict[str, object]:
    from ktops_engine.machine import detect_machine

    machine = detect_machine()
    total, available = machine.total_ram_bytes, machine.available_ram_bytes
    return {
        "cpu": f"{_cpu_model()}, {len(machine.cpus)} physical cores usable",
        "ram": f"{format_bytes(total)}, {format_bytes(available)} available",
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _gpus() -> list[str]:
    """One line a GPU as nvidia-smi names it; none without nvidia-smi, or why it did not answer."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return []
    try:
        done = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi failed: {error}"]
    if done.returncode:
        return [f"nvidia-smi failed: {(done.stdout + done.stderr).strip()}"]
    return done.stdout.strip().splitlines()


def _native() -> str:
    """The native library in one line. A broken one is reported, not raised: this is a report."""
    from ktops_engine.native.build import find_current

    try:
        info = find_current()
    except (KtopsError, OSError) as error:
        return f"broken: {error}"
    if info is None:
        return "not built, or stale: ktops build"
    return f"{info.path}, {info.compiler}, NUMA {'on' if info.numa else 'off'}"


def _package(name: str) -> str | None:
    """The version in the package's metadata: reading it imports nothing."""
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return None


def _settings() -> dict[str, object]:
    """The settings that are not defaults, each with its value and where it came from."""
    try:
        settings = load_settings()
    except KtopsError as error:
        return {"broken:": error.message}
    return {
        name: {"value": _shown(settings, name), "origin": origin}
        for name, origin in settings.origins.items()
        if origin != ORIGIN_DEFAULT
    }


def _shown(settings: Settings, name: str) -> object:
    value = getattr(settings, name)
    if name == "api_key":
        return MASK
    return str(value) if isinstance(value, Path) else value


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what ktops does, secrets masked."""
    return {
        name: _masked(name, value)
        for name, value in sorted(environ.items())
        if name.startswith(VARIABLES)
    }


def _masked(name: str, value: str) -> str:
    if any(word in name for word in SECRET_WORDS):
        return MASK
    return URL_USER.sub("//***@", value)
