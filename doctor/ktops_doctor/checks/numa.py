"""NUMA: where memory is, and whether kernel, container and native library agree about it."""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.expectations import needs, node_count, should_be
from ktops_doctor.fixes import build_remedy, in_container, on_container_host, remark, sudo
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.topology import Node, format_cpu_list, nodes, parse_cpu_list, process_status
from ktops_doctor.units import binary, decimal
from ktops_engine.text import Text, text

_BALANCING = "/proc/sys/kernel/numa_balancing"


def _with_cpus(host: Host) -> list[Node]:
    return [node for node in nodes(host) if node.cpus]


def _nodes(host: Host, target: Target) -> Finding:
    found = nodes(host)
    if len(found) < 2:
        return ok(node_count(1))
    value = node_count(len(found))
    without_cpus = [node.number for node in found if not node.cpus]
    without_memory = [node.number for node in found if node.cpus and not node.memory_bytes]
    if without_memory:
        return warn(
            text("{count}, {which} without memory", count=value, which=_names(without_memory)),
            detail=text("its cores read everything from another node, at a fraction of the speed"),
            fix=remark("numactl --hardware", text("then give each socket its memory modules")),
        )
    memory = sorted({binary(node.memory_bytes) for node in found if node.memory_bytes})
    value = text("{count} of {sizes}", count=value, sizes=" / ".join(memory))
    if without_cpus:
        which = _names(without_cpus)
        value = text("{count}, {which} with memory alone", count=value, which=which)
    return ok(value)


def _memory_policy(host: Host, target: Target) -> Finding:
    """Nodes whose memory this process may take (cpuset.mems, numactl --membind)."""
    found = nodes(host)
    allowed = set(parse_cpu_list(process_status(host, "Mems_allowed_list")))
    usable = [node for node in found if node.number in allowed]
    if len(found) < 2 or not allowed or len(usable) == len(found):
        return ok(text("memory of every node may be used"))
    total = sum(node.memory_bytes for node in usable)
    which = _names([node.number for node in usable])
    value = text("memory of {which} only, {size}", which=which, size=binary(total))
    fix = (
        on_container_host("docker update --cpuset-mems '' CONTAINER")
        if in_container(host)
        else remark("numactl --show", text("start ktops from a shell without --membind"))
    )
    if total >= target.ram_bytes:
        return warn(value, detail=text("the other nodes' memory bandwidth is lost"), fix=fix)
    return fail(
        value,
        needs(decimal(target.ram_bytes)),
        detail=text("the process would be killed while it loads"),
        fix=fix,
    )


def _balancing(host: Host, target: Target) -> Finding:
    setting = (host.read_text(_BALANCING) or "").strip()
    if len(_with_cpus(host)) < 2:
        return skip(text("one node: nothing to balance"))
    if setting in {"", "0"}:
        return ok(text("off"))
    return warn(
        text("on"),
        detail=text("the kernel moves pages under running kernels, and decoding slows down"),
        fix=sudo(host, "sysctl kernel.numa_balancing=0"),
    )


def _build(host: Host, target: Target) -> Finding:
    choice = host.env("USE_NUMA")
    if choice not in {"", "0", "1"}:
        return warn(
            text("USE_NUMA is {choice!r}", choice=choice),
            should_be(text("1 or 0")),
            detail=text("`ktops build` refuses it"),
            fix="unset USE_NUMA",
        )
    facts = host.probe("native").facts
    if "numa" not in facts:
        return skip(text("the native library is not built"))
    found = nodes(host)
    if facts["numa"]:
        return ok(text("built for NUMA, {count} here", count=node_count(len(found) or 1)))
    if len(found) < 2:
        return ok(text("built for one node, {count} here", count=node_count(1)))
    cores = "; ".join(format_cpu_list(sorted(node.cpus)) for node in found if node.cpus)
    return warn(
        text(
            "built for one node, {count} here (cores {cores})",
            count=node_count(len(found)),
            cores=cores,
        ),
        detail=text("all weights may land on one node, and the bandwidth of the others is lost"),
        fix="ktops build --numa on --force",
        remedy=build_remedy(host, "--numa", "on", "--force"),
    )


def _placement(host: Host, target: Target) -> Finding:
    if len(nodes(host)) < 2:
        return skip(text("one node: nothing to place"))
    output = host.probe("mempolicy")
    if output.facts.get("allowed"):
        return ok(text("allowed"))
    return warn(
        text("set_mempolicy is refused ({reason})", reason=output.reason("reason")),
        detail=text("weights then lie on the nodes of the threads that load them"),
        fix=remark(
            "docker run --cap-add SYS_NICE --gpus all IMAGE",
            text("the container needs the capability"),
        ),
    )


def _names(numbers: list[int]) -> Text:
    listed = format_cpu_list(numbers)
    if len(numbers) == 1:
        return text("node {number}", number=listed)
    return text("nodes {numbers}", numbers=listed)


CHECKS = (
    Check(
        id="numa.nodes",
        title=text("NUMA nodes"),
        section=Section.MEMORY,
        run=_nodes,
        why="Each socket, or a part of one (NPS, SNC), has memory of its own. Every node with "
        "cores should have memory; nodes with memory alone are used, and slower.",
    ),
    Check(
        id="numa.mems",
        title=text("Nodes whose memory may be used"),
        section=Section.MEMORY,
        run=_memory_policy,
        why="A container's cpuset or numactl can confine a process to the memory of some nodes.",
    ),
    Check(
        id="numa.balancing",
        title=text("Automatic NUMA balancing"),
        section=Section.MEMORY,
        run=_balancing,
        why="The kernel unmaps pages to see who uses them, and moves them between nodes. Weights "
        "are placed once and for all: every move is lost time.",
    ),
    Check(
        id="numa.build",
        title=text("NUMA in the native library"),
        section=Section.MEMORY,
        run=_build,
        why="The library is built with or without NUMA (USE_NUMA=1 or 0; detected when unset). "
        "Built without it, on a machine with several nodes, all weights may land on one.",
    ),
    Check(
        id="numa.policy",
        title=text("Permission to place memory"),
        section=Section.MEMORY,
        run=_placement,
        why="Docker's default profile refuses set_mempolicy without the capability SYS_NICE.",
    ),
)
