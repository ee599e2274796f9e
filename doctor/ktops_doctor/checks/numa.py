"""NUMA: where memory is, and whether kernel, container and native library agree about it."""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.fixes import in_container, sudo
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.topology import Node, format_cpu_list, nodes, parse_cpu_list, process_status
from ktops_doctor.units import binary, decimal, plural

_BALANCING = "/proc/sys/kernel/numa_balancing"


def _with_cpus(host: Host) -> list[Node]:
    return [node for node in nodes(host) if node.cpus]


def _nodes(host: Host, target: Target) -> Finding:
    found = nodes(host)
    if len(found) < 2:
        return ok("1 node")
    value = plural(len(found), "node")
    without_cpus = [node.number for node in found if not node.cpus]
    without_memory = [node.number for node in found if node.cpus and not node.memory_bytes]
    if without_memory:
        return warn(
            f"{value}, {_names(without_memory)} without memory",
            detail="its cores read everything from another node, at a fraction of the speed",
            fix="numactl --hardware   # then give each socket its memory modules",
        )
    memory = sorted({binary(node.memory_bytes) for node in found if node.memory_bytes})
    value += f" of {' or '.join(memory)}"
    if without_cpus:
        value += f", {_names(without_cpus)} with memory alone"
    return ok(value)


def _memory_policy(host: Host, target: Target) -> Finding:
    """Nodes whose memory this process may take (cpuset.mems, numactl --membind)."""
    found = nodes(host)
    allowed = set(parse_cpu_list(process_status(host, "Mems_allowed_list")))
    usable = [node for node in found if node.number in allowed]
    if len(found) < 2 or not allowed or len(usable) == len(found):
        return ok("memory of every node may be used")
    total = sum(node.memory_bytes for node in usable)
    value = f"memory of {_names([node.number for node in usable])} only, {binary(total)}"
    fix = (
        "docker update --cpuset-mems '' CONTAINER   # on the container's host"
        if in_container(host)
        else "numactl --show   # start ktops from a shell without --membind"
    )
    if total >= target.ram_bytes:
        return warn(value, detail="the other nodes' memory bandwidth is lost", fix=fix)
    needs = f"needs {decimal(target.ram_bytes)}"
    return fail(value, needs, detail="the process would be killed while it loads", fix=fix)


def _balancing(host: Host, target: Target) -> Finding:
    text = (host.read_text(_BALANCING) or "").strip()
    if len(_with_cpus(host)) < 2:
        return skip("one node: nothing to balance")
    if text in {"", "0"}:
        return ok("off")
    return warn(
        "on",
        detail="the kernel moves pages under running kernels, and decoding slows down",
        fix=sudo(host, "sysctl kernel.numa_balancing=0"),
    )


def _build(host: Host, target: Target) -> Finding:
    choice = host.env("USE_NUMA")
    if choice not in {"", "0", "1"}:
        return warn(
            f"USE_NUMA is {choice!r}",
            "should be 1 or 0",
            detail="`ktops build` refuses it",
            fix="unset USE_NUMA",
        )
    facts = host.probe("native").facts
    if "numa" not in facts:
        return skip("the native library is not built")
    found = nodes(host)
    if facts["numa"]:
        return ok(f"built for NUMA, {plural(len(found) or 1, 'node')} here")
    if len(found) < 2:
        return ok("built for one node, 1 node here")
    cores = " and ".join(format_cpu_list(sorted(node.cpus)) for node in found if node.cpus)
    return warn(
        f"built for one node, {len(found)} nodes here (cores {cores})",
        detail="all weights may land on one node, and the bandwidth of the others is lost",
        fix="ktops build --numa on --force",
    )


def _placement(host: Host, target: Target) -> Finding:
    if len(nodes(host)) < 2:
        return skip("one node: nothing to place")
    output = host.probe("mempolicy")
    if output.facts.get("allowed"):
        return ok("allowed")
    reason = output.facts.get("reason") or output.error
    return warn(
        f"set_mempolicy is refused ({reason})",
        detail="weights cannot be spread over the nodes, and decoding slows down",
        fix="docker run --cap-add SYS_NICE --gpus all IMAGE   # the container needs the capability",
    )


def _names(numbers: list[int]) -> str:
    return f"{'node' if len(numbers) == 1 else 'nodes'} {format_cpu_list(numbers)}"


CHECKS = (
    Check(
        id="numa.nodes",
        title="NUMA nodes",
        section=Section.MEMORY,
        run=_nodes,
        why="Each socket, or a part of one (NPS, SNC), has memory of its own. Every node with "
        "cores should have memory; nodes with memory alone are used, and slower.",
    ),
    Check(
        id="numa.mems",
        title="Nodes whose memory may be used",
        section=Section.MEMORY,
        run=_memory_policy,
        why="A container's cpuset or numactl can confine a process to the memory of some nodes.",
    ),
    Check(
        id="numa.balancing",
        title="Automatic NUMA balancing",
        section=Section.MEMORY,
        run=_balancing,
        why="The kernel unmaps pages to see who uses them, and moves them between nodes. Weights "
        "are placed once and for all: every move is lost time.",
    ),
    Check(
        id="numa.build",
        title="NUMA in the native library",
        section=Section.MEMORY,
        run=_build,
        why="The library is built with or without NUMA (USE_NUMA=1 or 0; detected when unset). "
        "Built without it, on a machine with several nodes, all weights may land on one.",
    ),
    Check(
        id="numa.policy",
        title="Permission to place memory",
        section=Section.MEMORY,
        run=_placement,
        why="Docker's default profile refuses set_mempolicy without the capability SYS_NICE.",
    ),
)
