"""`ktops env`: what is installed and what the machine is, to paste into a report.

It is English in every language: whoever reads an issue must understand it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ktops.commandline import output_of
from ktops.commands.version import ktops_version
from ktops.masking import MASK, mask_text, masked
from ktops.report.machine import cpu_facts, gpu_facts, memory_facts, numa_facts, tool_facts
from ktops.report.text import report_lines
from ktops.settings import SECRETS, SETTING_NAMES, Settings, load_settings
from ktops_engine.errors import KtopsError

if TYPE_CHECKING:
    from ktops_doctor import Host

EXAMPLES = (
    ("ktops env", "a block of text for an issue"),
    ("ktops env --json", "the same for a program"),
)

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "gguf",
    "tokenizers",
    "huggingface-hub",
    "modelscope-hub",
    "fastapi",
    "uvicorn",
    "pydantic",
    "httpx",
    "typer",
    "rich",
    "psutil",
)
VARIABLE_PREFIXES = (
    "KTOPS_", "CUDA_", "HF_", "MODELSCOPE_", "OMP_", "GOMP_", "MKL_", "PYTORCH_",
    "TORCH_", "XDG_", "LC_",
)  # fmt: skip
VARIABLES = frozenset({
    "USE_NUMA", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "CONDA_PREFIX", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME",
    "CC", "CXX", "LANG", "TERM", "CI", "NO_COLOR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
})  # fmt: skip


def env(ctx: typer.Context) -> None:
    """Describe this installation and this machine. Keys and tokens are never shown."""
    from ktops_doctor import LiveHost

    report = describe(LiveHost(), os.environ)
    lines = report_lines(report)
    output_of(ctx).result(report, human=lines, quiet=lines)


def describe(host: Host, environ: Mapping[str, str]) -> dict[str, object]:
    """Everything the report says. Never raises for what is missing or broken."""
    return {
        "ktops": ktops_version(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": host.python().executable,
        },
        "os": {
            "name": _os_name(host),
            "kernel": host.platform().kernel,
            "architecture": host.platform().machine,
            "libc": host.platform().libc or None,
        },
        "cpu": cpu_facts(host),
        "numa_nodes": numa_facts(host),
        "memory": memory_facts(host),
        "gpu": gpu_facts(host),
        "tools": tool_facts(host),
        "packages": {name: host.package_version(name) for name in PACKAGES},
        "native": native_facts(host),
        "settings": _settings(),
        "environment": shown_variables(environ),
    }


def native_facts(host: Host) -> dict[str, object]:
    """The native library, as a child process finds and loads it: what breaks, breaks there."""
    found = host.probe("native")
    facts = found.facts
    problem = next(
        (facts[name] for name in ("import_error", "find_error", "load_error") if name in facts),
        found.error or None,
    )
    if "damaged" in facts:
        problem = f"{facts['damaged']} is damaged"
    state = "built" if facts.get("isa") else "broken" if problem else "missing"
    return {
        "state": state,
        "problem": problem,
        **{
            name: facts.get(name)
            for name in ("path", "compiler", "numa", "built_at", "isa", "isa_available")
        },
    }


def shown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what ktops does, secrets masked."""
    return {
        name: masked(name, value)
        for name, value in sorted(environ.items())
        if name.startswith(VARIABLE_PREFIXES) or name.upper() in VARIABLES
    }


def _os_name(host: Host) -> str:
    for line in (host.read_text("/etc/os-release") or "").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip().strip("\"'")
    return host.platform().system


def _settings() -> dict[str, object]:
    """Every setting with its origin; in their place, why they cannot be read."""
    try:
        settings = load_settings()
    except KtopsError as error:
        return {"problem": mask_text(str(error.message)), "values": {}}
    values = {
        name: {"value": _shown(settings, name), "origin": settings.origins[name]}
        for name in SETTING_NAMES
    }
    return {"problem": None, "values": values}


def _shown(settings: Settings, name: str) -> str | int | None:
    value = getattr(settings, name)
    if value is None or isinstance(value, int):
        return value
    if name in SECRETS:
        return MASK
    return str(value) if isinstance(value, Path) else masked(name, str(value))
