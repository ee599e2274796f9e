"""Cores this process may use, the instructions they offer, and what holds them back."""

from __future__ import annotations

from dataclasses import dataclass

from ktops_doctor.check import Check, Finding, Section, ok, skip, warn
from ktops_doctor.cpu_models import CpuModel, identify, missing_features
from ktops_doctor.expectations import needs, should_be
from ktops_doctor.fixes import in_container, on_container_host, remark, sudo
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.topology import cpu_quota, parse_cpu_list, physical_cores
from ktops_doctor.units import version
from ktops_engine.text import Text, text

_GOVERNOR = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
_PERFORMANCE = "performance"
_AMX_KERNEL = (5, 16)
_MASKING_WORDS = frozenset({"clearcpuid", "noxsave"})


@dataclass(frozen=True)
class _Isa:
    name: str
    flags: frozenset[str]


# Best first: what the kernels of csrc can be chosen for, in the words of /proc/cpuinfo.
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
_LEVELS = (
    _Isa(text("AMX and AVX-512"), _AVX512 | {"avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"}),
    _Isa(text("AVX-512 with VNNI"), _AVX512 | {"avx512_vnni"}),
    _Isa("AVX-512", _AVX512),
    _Isa("AVX2", frozenset({"avx2", "fma", "f16c"})),
)


def _cores(host: Host, target: Target) -> Finding:
    allowed = host.cpus_allowed()
    cores = physical_cores(host, allowed)
    online = physical_cores(host, _online(host) or allowed)
    value = _count(cores, len(allowed), online)
    expected = needs(target.cores)
    if cores >= target.cores:
        return ok(value, expected)
    if online >= target.cores:
        return warn(
            value,
            expected,
            detail=text("this process is confined to a part of them (cpuset or taskset)"),
            fix=on_container_host("docker update --cpuset-cpus '' CONTAINER")
            if in_container(host)
            else remark(
                "taskset -pc $$",
                text("shows what this shell may use; start ktops from one with all"),
            ),
        )
    return warn(
        value,
        expected,
        detail=text("the experts of every token are computed here, so answers come slower"),
        fix=remark("ktops models", text("smaller models need fewer")),
    )


def _count(cores: int, threads: int, online: int) -> Text:
    value = (
        text("{cores} physical core", cores=cores)
        if cores == 1
        else text("{cores} physical cores", cores=cores)
    )
    if threads > cores:
        value = text("{cores} ({threads} threads)", cores=value, threads=threads)
    if online > cores:
        value = text("{cores} of the machine's {online}", cores=value, online=online)
    return value


def _isa(host: Host, target: Target) -> Finding:
    cpu = identify(host)
    cap = host.env("KTOPS_ISA")
    level = next((level for level in _LEVELS if level.flags <= cpu.flags), None)
    if cap:
        capped = text("KTOPS_ISA={cap} caps the kernels of this CPU", cap=cap)
        return warn(
            _with_name(capped, cpu),
            detail=text("they may be slower than this machine allows"),
            fix="unset KTOPS_ISA",
        )
    if level is None:
        return warn(
            _with_name(text("neither AVX-512 nor AVX2"), cpu),
            detail=text("only the scalar kernels run, many times slower"),
            fix=remark(
                "grep -m1 flags /proc/cpuinfo",
                text("a VM may hide what its host has: see cpu.masked"),
            ),
        )
    return ok(_with_name(level.name, cpu))


def _with_name(words: str, cpu: CpuModel) -> str:
    return text("{words} ({cpu})", words=words, cpu=cpu.name) if cpu.name else words


def _masked(host: Host, target: Target) -> Finding:
    cpu = identify(host)
    if not cpu.generation:
        return skip(text("the generation of this CPU is not known"))
    missing = missing_features(cpu)
    if not missing:
        return ok(text("{cpu}: all it has is offered", cpu=cpu.generation))
    return warn(
        text("{cpu} without {missing}", cpu=cpu.generation, missing=", ".join(missing)),
        detail=_withheld_by(host, cpu, missing),
        fix=_unmask(host, cpu, missing),
    )


def _withheld_by(host: Host, cpu: CpuModel, missing: list[str]) -> str:
    word = _masking_word(host)
    if word:
        return text("the kernel was booted with {word}; slower kernels are chosen", word=word)
    if missing == ["AMX"] and version(host.platform().kernel) < _AMX_KERNEL:
        return text("Linux offers AMX from 5.16 on; prompts are computed slower")
    if "hypervisor" in cpu.flags:
        return text("the hypervisor withholds them; slower kernels are chosen")
    return text("the firmware withholds them; slower kernels are chosen")


def _unmask(host: Host, cpu: CpuModel, missing: list[str]) -> str:
    word = _masking_word(host)
    if word:
        line = f"grep -rn {word.partition('=')[0]} /etc/default/grub"
        return remark(line, text("take it out, then update-grub"))
    if missing == ["AMX"] and version(host.platform().kernel) < _AMX_KERNEL:
        return remark("uname -r", text("then boot kernel 5.16 or newer"))
    if "hypervisor" in cpu.flags:
        line = "virt-xml VM --edit --cpu host-passthrough"
        return remark(line, text("on the host, then restart the VM"))
    line = sudo(host, "systemctl reboot --firmware-setup")
    return remark(line, text("switch them on in the firmware"))


def _masking_word(host: Host) -> str:
    words = (host.read_text("/proc/cmdline") or "").split()
    return next((w for w in words if w.partition("=")[0] in _MASKING_WORDS), "")


def _governor(host: Host, target: Target) -> Finding:
    found = {
        setting.strip()
        for cpu in host.cpus_allowed()
        if (setting := host.read_text(_GOVERNOR.format(cpu)))
    }
    if not found:
        return skip(text("no frequency control here (a VM, or set by the firmware)"))
    if found == {_PERFORMANCE}:
        return ok(_PERFORMANCE)
    value = ", ".join(sorted(found))
    path = _GOVERNOR.format("*")
    write = f"for f in {path}; do echo performance > $f; done"
    return warn(
        value,
        should_be("performance"),
        detail=text("cores that slow down between tokens answer later"),
        fix=sudo(host, f"sh -c '{write}'"),
    )


def _quota(host: Host, target: Target) -> Finding:
    quota = cpu_quota(host)
    if quota is None:
        return ok(text("no limit on CPU time"))
    wanted = min(target.cores, physical_cores(host, host.cpus_allowed()))
    value = text("CPU time of {quota} cores", quota=f"{quota:g}")
    if quota >= wanted:
        return ok(value, needs(wanted))
    return warn(
        value,
        needs(wanted),
        detail=text("threads beyond it are stopped in the middle of a token"),
        fix=on_container_host("docker update --cpus 0 CONTAINER")
        if in_container(host)
        else "systemctl show -p CPUQuotaPerSecUSec $(cut -d/ -f3 /proc/self/cgroup)",
    )


def _online(host: Host) -> frozenset[int]:
    return frozenset(parse_cpu_list(host.read_text("/sys/devices/system/cpu/online") or ""))


CHECKS = (
    Check(
        id="cpu.cores",
        title=text("Physical cores"),
        section=Section.CPU,
        run=_cores,
        why="The routed experts are computed by one thread a physical core. Only cores that this "
        "process may use count (cpuset, taskset), and two hyper-threads are one core: more threads "
        "than cores make decoding several times slower.",
    ),
    Check(
        id="cpu.isa",
        title=text("Vector instructions"),
        section=Section.CPU,
        run=_isa,
        why="The kernels are chosen at run time from what the CPU and the system offer, so "
        "there is no illegal instruction; but without AVX2 only scalar code is left. KTOPS_ISA "
        "caps the choice.",
    ),
    Check(
        id="cpu.masked",
        title=text("Instructions that are withheld"),
        section=Section.CPU,
        run=_masked,
        why="A hypervisor, a boot option or an old kernel can hide AVX-512 or AMX that the CPU "
        "has. The model number tells what it should offer.",
    ),
    Check(
        id="cpu.quota",
        title=text("Limit on CPU time"),
        section=Section.CPU,
        run=_quota,
        why="A control group can grant less CPU time than there are cores; threads that wait for "
        "each other then stop in the middle of a token.",
    ),
    Check(
        id="cpu.governor",
        title=text("Frequency governor"),
        section=Section.CPU,
        run=_governor,
        why="With the powersave governor cores clock down while they wait for the GPU.",
    ),
)
