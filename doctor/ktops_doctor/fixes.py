"""Command lines that mend things, worded for the machine at hand."""

from __future__ import annotations

import shlex

from ktops_doctor.host import Host
from ktops_doctor.remedy import Command, Remedy
from ktops_doctor.topology import process_status
from ktops_engine.text import Text, joined, text

_DEBIAN, _FEDORA, _SUSE, _ARCH = "debian", "fedora", "suse", "arch"
_FAMILIES = {
    "debian": _DEBIAN,
    "ubuntu": _DEBIAN,
    "fedora": _FEDORA,
    "rhel": _FEDORA,
    "centos": _FEDORA,
    "suse": _SUSE,
    "opensuse": _SUSE,
    "arch": _ARCH,
}


def remark(command: str, words: str) -> Text:
    """`command` with a comment behind it, as a shell takes it."""
    return joined((command, words), "   # ")


def on_container_host(command: str) -> Text:
    """`command`, which only the host of this container can run."""
    return remark(command, text("on the container's host"))


def ktops_command(host: Host, *arguments: str) -> Command:
    """`ktops ...` as this interpreter runs it, whatever `ktops` is on the PATH."""
    return (host.python().executable, "-m", "ktops", *arguments)


def build_remedy(host: Host, *options: str) -> Remedy:
    """Compile the native library into the cache. What is there already stays beside it or is
    replaced by the same sources' work: there is nothing to take back."""
    return Remedy(
        text("compile the native library (up to a minute)"),
        (ktops_command(host, "build", *options),),
    )


def os_release(host: Host) -> dict[str, str]:
    """The fields of /etc/os-release; empty where there is none."""
    fields = {}
    for line in (host.read_text("/etc/os-release") or "").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name] = value.strip().strip("\"'")
    return fields


def is_root(host: Host) -> bool:
    """Whether this process is root (its effective user id is 0)."""
    return process_status(host, "Uid").split()[1:2] == ["0"]


def sudo(host: Host, command: str) -> str:
    """`command` as this user has to write it."""
    return command if is_root(host) else f"sudo {command}"


def write_file(host: Host, value: str, path: str) -> str:
    """A command that writes `value` to a file of the kernel."""
    return f"echo {value} > {path}" if is_root(host) else f"echo {value} | sudo tee {path}"


def install(host: Host, *, debian: str, fedora: str, suse: str, arch: str, conda: str) -> str:
    """The line that installs a system package here; conda's where the distribution is unknown."""
    fields = os_release(host)
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    family = next((_FAMILIES[name] for name in names if name in _FAMILIES), None)
    if family == _DEBIAN:
        return sudo(host, f"apt-get install -y {debian}")
    if family == _FEDORA:
        return sudo(host, f"dnf install -y {fedora}")
    if family == _SUSE:
        return sudo(host, f"zypper install -y {suse}")
    if family == _ARCH:
        return sudo(host, f"pacman -S --noconfirm {arch}")
    return f"conda install -y -c conda-forge {conda}"


def pip_install(host: Host, *arguments: str) -> str:
    """`pip install` for the interpreter that runs the engine, whatever `pip` is on the PATH."""
    return shlex.join(pip_command(host, "install", *arguments))


def pip_command(host: Host, *arguments: str) -> Command:
    """pip of the interpreter that runs the engine."""
    return (host.python().executable, "-m", "pip", *arguments)


def in_container(host: Host) -> bool:
    """Whether this looks like a container."""
    marks = ("/.dockerenv", "/run/.containerenv")
    variables = ("container", "KUBERNETES_SERVICE_HOST")
    return any(map(host.exists, marks)) or any(map(host.env, variables))
