"""What `ktops build` and `ktops build --info` say about a build and about this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ktops.output import Output
from ktops_engine.errors import KtopsError
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from ktops_engine.native.cache import BuildInfo
    from ktops_engine.native.detection import Detection
    from ktops_engine.native.load import Native

_SHORT_HASH = 12
_LABEL_WIDTH = 10


def build_document(info: BuildInfo) -> dict[str, object]:
    """A build for --json."""
    return {
        "path": str(info.path),
        "numa": info.numa,
        "numa_origin": info.numa_origin,
        "num_nodes": info.num_nodes,
        "memory_placement": "by-rows" if info.numa else "first-touch",
        "compiler": info.compiler,
        "isa": list(info.isa),
        "flags": dict(info.flags),
        "built_at": info.built_at,
        "sources_hash": info.sources_hash,
        "log": str(info.log),
    }


def build_lines(info: BuildInfo, output: Output) -> list[str]:
    """A build for people."""
    from ktops_engine.native.detection import numa_reason

    return [
        _line("library", str(info.path), output),
        _line("compiler", info.compiler, output),
        _line("NUMA", _numa(info.numa, numa_reason(info.numa_origin, info.num_nodes)), output),
        _line("kernels", ", ".join(info.isa), output),
        _line("built", info.built_at, output),
    ]


def print_info(output: Output) -> None:
    """What the build that is there detected, and what the running machine would say now.

    Raises KtopsError: sources-missing, bad-use-numa.
    """
    from ktops_engine.native.build import find_current
    from ktops_engine.native.cache import cache_folder, newest_build
    from ktops_engine.native.detection import detect, differences

    now = detect()
    current = find_current()
    info = current or newest_build(cache_folder(os.environ))
    found = differences(info, now) if info else []
    state = "current" if current else "stale" if info else "missing"
    native, problem = _loaded(info) if info else (None, None)
    output.result(
        {
            "state": state,
            "built": build_document(info) if info else None,
            "now": _now_document(now),
            "runs": {"isa": native.isa, "isa_available": list(native.isa_available)}
            if native
            else None,
            "load_error": str(problem) if problem else None,
            "differences": list(found),
        },
        human=[
            *_built_lines(info, output),
            "",
            *_now_lines(now, native, problem, output),
            "",
            *_closing(info, current is not None, found, output),
        ],
        quiet=[state],
    )


def _loaded(info: BuildInfo) -> tuple[Native | None, KtopsError | None]:
    from ktops_engine.native.load import load_native

    try:
        return load_native(info), None
    except KtopsError as error:
        return None, error


def _built_lines(info: BuildInfo | None, output: Output) -> list[str]:
    if info is None:
        return [output.say(text("no kernels are built yet"))]
    memory = (
        text("each node holds its share of the rows; libnuma is not used")
        if info.numa
        else text("not spread: pages lie where they are first written")
    )
    return [
        output.style(output.say(text("as it was built")), "bold"),
        *build_lines(info, output),
        _line("memory", memory, output),
        *(
            _line("flags" if not index else "", f"{unit}: {flags}", output)
            for index, (unit, flags) in enumerate(info.flags.items())
        ),
        _line("sources", info.sources_hash[:_SHORT_HASH], output),
        _line("log", str(info.log), output),
    ]


def _now_lines(
    now: Detection, native: Native | None, problem: KtopsError | None, output: Output
) -> list[str]:
    if now.toolchain is not None:
        compiler: str = now.toolchain.compiler.version
    else:
        compiler = now.problem.message if now.problem else ""
    lines = [
        output.style(output.say(text("as this machine is now")), "bold"),
        _line("compiler", compiler, output),
        _line("NUMA", _numa(now.numa, now.numa_reason), output),
        _line("sources", now.sources_hash[:_SHORT_HASH], output),
    ]
    if native is not None:
        runs = text(
            "{isa} is used, of {available}",
            isa=native.isa,
            available=", ".join(native.isa_available),
        )
        lines.append(_line("CPU", runs, output))
    if problem is not None:
        lines.append(_line("library", problem.message, output))
    return lines


def _closing(
    info: BuildInfo | None, is_current: bool, found: list[Text], output: Output
) -> list[str]:
    fix = [f"  {output.say(text('Fix:'))} ktops build"]
    if info is None:
        return fix
    if not found:
        return [output.say(text("current: nothing differs"))]
    words = joined(found, "; ")
    if is_current:
        return [output.say(text("current, with differences: {words}", words=words)), *fix]
    return [output.say(text("to be built again: {words}", words=words)), *fix]


def _now_document(now: Detection) -> dict[str, object]:
    tools = now.toolchain
    return {
        "sources_hash": now.sources_hash,
        "numa": now.numa,
        "numa_reason": str(now.numa_reason),
        "nodes": list(now.nodes),
        "compiler": tools.compiler.version if tools else None,
        "compiler_path": str(tools.compiler.path) if tools else None,
        "cmake": str(tools.cmake) if tools else None,
        "ninja": str(tools.ninja) if tools else None,
        "problem": str(now.problem) if now.problem else None,
    }


def _numa(on: bool, reason: Text) -> Text:
    return text("on: {reason}", reason=reason) if on else text("off: {reason}", reason=reason)


def _line(label: str, value: str, output: Output) -> str:
    """Labels are names to look for in reports: English in every language."""
    return f"{label:<{_LABEL_WIDTH}}{output.say(value)}"
