"""Boots a virtual machine with several NUMA nodes and shows where the pages of weights go.

    python tests/numa/run_qemu.py [--kernel VMLINUZ]

Needs qemu-system-x86 and busybox-static; without --kernel, Debian's kernel is downloaded with
apt-get into build/numa, and not installed. The machine has two nodes with CPUs and memory, one
without CPUs and one without memory. It prints what csrc/tests/show_placement.cpp says in each case,
and ends with status 1 if any page is elsewhere.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "numa"
TIMEOUT_S = 280

NODES = (
    ("cpus=0-1", 700),
    ("cpus=2-3", 700),
    ("cpus=4", 0),  # no memory
    ("", 300),  # no CPUs; Linux counts such nodes last
)
# As of two sockets, the third node in the second, the fourth behind the first.
DISTANCES = {(0, 1): 21, (0, 2): 21, (0, 3): 17, (1, 2): 12, (1, 3): 28, (2, 3): 28}


@dataclass(frozen=True)
class Case:
    """What is started in the machine; `cpuset` are its CPUs and memory nodes."""

    title: str
    arguments: str
    cpuset: tuple[str, str] | None = None


CASES = (
    Case("two nodes", "0:0 1:0 2:1 3:1"),
    Case("two nodes, system calls about nodes forbidden", "--forbid 0:0 1:0 2:1 3:1"),
    Case("one CPU against three, one of them from the node without memory", "0:0 2:1 3:1 4:1"),
    Case("three nodes, one of them without CPUs", "0:0 2:1 4:3"),
    Case("a cpuset of one CPU and the memory of each node", "1:0 2:1", ("1,2", "0-1")),
    Case("a cpuset with the memory of one node", "1:1 2:1 3:1", ("1-3", "1")),
)


def missing_programs() -> list[str]:
    """The programs that this needs and the machine does not have."""
    needed = ("qemu-system-x86_64", "busybox", "cmake", "ninja")
    return [name for name in needed if shutil.which(name) is None]


def download_kernel() -> Path:
    """Debian's kernel image, from its archive; nothing is installed."""
    folder = WORK / "kernel"
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob("boot/vmlinuz-*"))):
        shown = _output("apt-cache", "depends", "linux-image-amd64")
        package = re.search(r"Depends: (linux-image-\S+)", shown)
        if package is None:
            raise SystemExit("apt-cache knows no linux-image-amd64: give --kernel VMLINUZ")
        subprocess.run(["apt-get", "download", package[1]], cwd=folder, check=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True)
        found = sorted(folder.glob("boot/vmlinuz-*"))
    return found[-1]


def build_program() -> Path:
    """`show_placement`, linked statically."""
    folder = WORK / "csrc"
    subprocess.run(
        ["cmake", "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", "-DKTOPS_TESTS=ON",
         "-DKTOPS_NUMA=ON"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(
        ["cmake", "--build", folder, "--target", "show_placement"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder / "tests" / "show_placement"


def init_script() -> str:
    """What the machine runs: every case, its status, then the end."""
    lines = [
        "#!/bin/busybox sh",
        "/bin/busybox --install -s /bin",
        "mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev",
        "mount -t cgroup -o cpuset none /cgroup",
        "echo; echo BEGIN",
        "for node in /sys/devices/system/node/node*; do",
        '  echo "${node##*/}: CPUs $(cat $node/cpulist), $(grep -o "MemTotal.*" $node/meminfo)"',
        '  echo "       distances $(cat $node/distance)"',
        "done",
    ]
    for index, case in enumerate(CASES):
        run = f"/show_placement {case.arguments}"
        lines.append(f"echo; echo '== {case.title}: {run[1:]}'")
        if case.cpuset is not None:
            cpus, memory = case.cpuset
            group = f"/cgroup/{index}"
            lines.append(
                f"mkdir {group}; echo {cpus} > {group}/cpuset.cpus; "
                f"echo {memory} > {group}/cpuset.mems; echo '   cpus {cpus}, mems {memory}'"
            )
            run = f"sh -c 'echo $$ > {group}/tasks; exec {run}'"
        lines.append(f"{run} || echo FAILED")
    return "\n".join([*lines, "echo END", "reboot -f", ""])


def initramfs(program: Path) -> bytes:
    """A cpio archive (newc: Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""
    directory, file = 0o040755, 0o100755
    entries = [(name, directory, b"") for name in ("bin", "proc", "sys", "dev", "cgroup")]
    busybox = Path(shutil.which("busybox") or "")
    entries += [
        ("bin/busybox", file, busybox.read_bytes()),
        ("show_placement", file, program.read_bytes()),
        ("init", file, init_script().encode()),
        ("TRAILER!!!", 0, b""),
    ]
    archive = b""
    for number, (name, mode, content) in enumerate(entries):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + "".join(f"{field:08x}" for field in fields).encode()
        archive += _padded(header + name.encode() + b"\0") + _padded(content)
    return archive


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def qemu_command(kernel: Path, archive: Path) -> list[str]:
    """A q35 machine with NODES, emulated: KVM is not to be had everywhere."""
    total = sum(memory for _, memory in NODES)
    command = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", "5", "-m", f"{total}M", "-nodefaults", "-display", "none", "-serial", "stdio",
        "-no-reboot", "-kernel", str(kernel), "-initrd", str(archive),
        "-append", "console=ttyS0 quiet panic=-1",
    ]  # fmt: skip
    for node, (cpus, memory) in enumerate(NODES):
        options = ["node", f"nodeid={node}", *([cpus] if cpus else [])]
        if memory:
            command += ["-object", f"memory-backend-ram,id=m{node},size={memory}M"]
            options.append(f"memdev=m{node}")
        command += ["-numa", ",".join(options)]
    for (a, b), distance in DISTANCES.items():
        command += ["-numa", f"dist,src={a},dst={b},val={distance}"]
    return command


def run(kernel: Path) -> str:
    """What the machine printed. Raises SystemExit when it did not come to its end."""
    archive = WORK / "initramfs.cpio"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(initramfs(build_program()))
    done = subprocess.run(
        qemu_command(kernel, archive), capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stdout.replace("\r", "")
    _, began, shown = said.partition("BEGIN\n")
    shown, ended, _ = shown.partition("END\n")
    if not began or not ended:
        raise SystemExit(f"the machine did not come to its end:\n{said[-3000:]}{done.stderr}")
    return shown


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernel", type=Path, help="a Linux kernel image with NUMA")
    asked = parser.parse_args()
    if missing := missing_programs():
        raise SystemExit(f"not here: {', '.join(missing)}")
    shown = run(asked.kernel or download_kernel())
    sys.stdout.write(shown)
    if "FAILED" in shown:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
