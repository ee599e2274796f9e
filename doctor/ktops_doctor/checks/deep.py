"""Checks that take long: they measure, read every file, or let the engine speak."""

from __future__ import annotations

import json
from pathlib import Path

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.expectations import should_be
from ktops_doctor.fixes import build_remedy, ktops_command, remark, sudo
from ktops_doctor.gpus import Gpu, smi_report
from ktops_doctor.host import SILENT, Host
from ktops_doctor.target import Target
from ktops_doctor.units import binary, decimal
from ktops_engine.text import Text, text

_RECORDED = str(Path(__file__).parents[1] / "probes" / "golden.json")
_EMBEDDED = "demo"
_MINUTE = 60.0
_PATIENT_SECONDS = 15 * _MINUTE  # a start that takes longer is worth a word
_HOURS = 4 * 3600.0  # hundreds of gigabytes are hashed
# Bytes/s of a lane after encoding, by generation: PCI Express base specification 3.0 to 6.0.
_LANE_RATE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_LINK_SHARE = 0.5


def _bandwidth(host: Host, target: Target) -> Finding:
    output = host.probe("bandwidth", time_limit=_MINUTE)
    rate = output.facts.get("bytes_per_s")
    if isinstance(rate, int | float):
        threads = output.facts.get("threads")
        return ok(text("{rate}/s with {threads} threads", rate=decimal(rate), threads=threads))
    if output.facts.get("built") is False:
        return skip(text("the native library is not built"))
    if output.facts.get("built"):
        return skip(text("too little memory is free to measure"))
    return fail(
        text("the native library does not work"),
        detail=output.reason(),
        fix="ktops build --force",
        remedy=build_remedy(host, "--force"),
    )


def _copy(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is None:
        return skip(text("no NVIDIA GPU"))
    output = host.probe("copy", time_limit=2 * _MINUTE)
    rate = output.facts.get("bytes_per_s")
    if not isinstance(rate, int | float):
        return skip(output.reason())
    value = text("{rate}/s to the GPU", rate=decimal(rate))
    most = _link_rate(report.gpus[0])
    if not most or rate >= most * _LINK_SHARE:
        return ok(value)
    return warn(
        value,
        should_be(f"{decimal(most * _LINK_SHARE)}/s"),
        detail=text("prompts stream the experts over it and take as much longer"),
        fix=remark(
            sudo(host, "lspci -vv -d 10de: | grep -i lnksta"),
            text("a link below its width or speed, or memory of a far NUMA node"),
        ),
    )


def _link_rate(gpu: Gpu) -> float:
    return _LANE_RATE.get(gpu.max_generation, 0.0) * gpu.max_lanes


def _golden(host: Host, target: Target) -> Finding:
    output = host.probe("golden", _RECORDED, time_limit=2 * _MINUTE)
    facts = output.facts
    if isinstance(facts.get("equal"), int):
        return ok(text("{count} tokens as recorded", count=facts["equal"]))
    if "differs" in facts:
        return fail(
            text(
                "the answer to {question} differs from token {place} on",
                question=facts["differs"],
                place=facts["place"],
            ),
            detail=text("what this machine computes is wrong: every model would talk nonsense"),
            fix=remark("KTOPS_ISA=scalar ktops doctor --only lib.golden", _suspects()),
        )
    return fail(
        text("the embedded model does not run"),
        detail=output.reason(),
        fix="ktops doctor --only lib,py",
    )


def _suspects() -> Text:
    return text("right with that: report it with ktops env; wrong too: test the memory")


def _rate(host: Host, target: Target) -> Finding:
    disk = host.disk(target.models_dir)
    measured = target.weights if target.weights not in {"", _EMBEDDED} else ""
    if not measured:
        if disk is None or not disk.writable:
            return skip(text("no weight file to read, and none may be written"))
        measured = disk.path
    output = host.probe("disk_rate", measured, time_limit=2 * _MINUTE)
    done, seconds = output.facts.get("bytes"), output.facts.get("seconds")
    if not isinstance(done, int) or not isinstance(seconds, float) or not done:
        return skip(output.reason())
    rate = done / seconds
    load_seconds = target.weights_bytes / rate
    value = text(
        "{rate}/s: {size} in {time}",
        rate=decimal(rate),
        size=binary(target.weights_bytes),
        time=_duration(load_seconds),
    )
    if load_seconds <= _PATIENT_SECONDS:
        return ok(value)
    return warn(
        value,
        detail=text("every start takes that long"),
        fix=remark("export KTOPS_MODELS=/path", text("on a faster disk")),
    )


def _duration(seconds: float) -> Text:
    if seconds < 2 * _MINUTE:
        return text("{seconds:.1f} s", seconds=seconds)
    return text("{minutes:.0f} min", minutes=seconds / _MINUTE)


def _hashes(host: Host, target: Target) -> Finding:
    if not target.weights:
        return skip(text("{model} is not downloaded", model=target.name))
    if target.weights == _EMBEDDED:
        return skip(text("{model} comes with ktops", model=target.name))
    command = ktops_command(host, "models", "verify", target.name, "--json")
    output = host.run(*command, time_limit=_HOURS)
    try:
        said = json.loads(output.stdout.strip().rpartition("\n")[2] or "{}")
    except ValueError:
        said = {}
    if output.ok:
        return ok(text("every file has the digest that its hub published"))
    error = said.get("error", {}) if isinstance(said, dict) else {}
    if error.get("code") == "never-verified":
        return skip(str(error.get("message")))
    return fail(
        text("the files of {model} are not those of the hub", model=target.name),
        detail=str(error.get("message") or "") or output.stderr.strip() or SILENT,
        fix=str(error.get("hint") or "") or f"ktops download {target.name} --verify",
    )


BANDWIDTH = Check(
    id="mem.bandwidth",
    title=text("Speed of memory"),
    section=Section.MEMORY,
    run=_bandwidth,
    deep=True,
    time_limit=_MINUTE + 5,
    why="Decoding reads several gigabytes of experts a token, so this rate decides the speed. It "
    "is measured with the native library's own kernels, on all cores that may be used.",
)
COPY = Check(
    id="gpu.copy",
    title=text("Speed of the way to the GPU"),
    section=Section.GPU,
    run=_copy,
    needs=("gpu.driver", "py.torch"),
    deep=True,
    time_limit=2 * _MINUTE + 5,
    why="Pinned memory is copied to the GPU with torch and held against half of what the link's "
    "generation and width allow.",
)
GOLDEN = Check(
    id="lib.golden",
    title=text("Tokens of the embedded model"),
    section=Section.NATIVE,
    run=_golden,
    needs=("lib.native", "py.torch"),
    deep=True,
    time_limit=2 * _MINUTE + 5,
    why="The embedded model is loaded in a child process and answers two questions greedily. Each "
    "token must be the one that llama.cpp gives with the same weights: garbled text has its cause "
    "below the model.",
)
RATE = Check(
    id="disk.rate",
    title=text("Speed of the disk"),
    section=Section.STORAGE,
    run=_rate,
    deep=True,
    time_limit=2 * _MINUTE + 5,
    why="A weight file is read for up to three seconds past the page cache (where there is none "
    "yet, 256 MiB are written to the models folder, read, and removed), and the time of a whole "
    "load is reckoned from it.",
)
HASHES = Check(
    id="model.sha256",
    title=text("Digests of the files"),
    section=Section.MODEL,
    run=_hashes,
    needs=("model.files",),
    deep=True,
    time_limit=_HOURS + 5,
    why="Every file is read and held against the SHA-256 that its hub published, as `ktops models "
    "verify` does it.",
)
