"""How fast models were on this machine: what an engine measured while it worked, kept for the next
start and for `ktops plan`.

A figure belongs to a model (its shape and bytes), a placement, a machine and its kernels; with
any other of these it says nothing. Random weights are as fast as a model's, and marked.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from ktops_engine.machine import MachineFacts
from ktops_engine.native.build import find_current
from ktops_engine.plan import ModelFacts, Part, Placement
from ktops_engine.remembered import machine_key, recall, remember, state_folder
from ktops_engine.speed_meter import Figure, Speeds

FILE = "speeds.json"
MAX_ENTRIES = 200  # the oldest are forgotten
SAVE_EVERY_S = 60.0
# Parts of a placement that the context decides about, and not the speed.
NOT_WEIGHTS = (Part.KV_CACHE, Part.BUFFERS)


@dataclass(frozen=True)
class Measured:
    """A figure with the time it was kept at, in seconds since 1970."""

    figure: Figure
    at: float


@dataclass(frozen=True)
class MeasuredSpeeds:
    """What is known of a placement. `prompts` are by the class of their length; `is_random`: with
    random weights in place of the model's."""

    decode: Measured | None = None
    prompts: Mapping[int, Measured] = field(default_factory=lambda: MappingProxyType({}))
    is_random: bool = False


def recalled_speeds(
    placement: Placement, facts: ModelFacts, machine: MachineFacts
) -> MeasuredSpeeds | None:
    """What was measured of `placement` on this machine, `machine`, with the library there is now;
    with random weights where nothing else was. None: nothing was."""
    info = find_current()
    if info is None:
        return None
    kept = recall(_file())
    for is_random in (False, True):
        key = speed_key(placement, facts, machine, info.sources_hash, is_random=is_random)
        if key in kept:
            speeds = _parsed(kept[key], is_random=is_random)
            if speeds.decode is not None or speeds.prompts:
                return speeds
    return None


def speed_key(
    placement: Placement,
    facts: ModelFacts,
    machine: MachineFacts,
    sources_hash: str,
    *,
    is_random: bool,
) -> str:
    """What a measured speed is of."""
    model = facts.config
    shape = (model.hidden_size, model.num_attention_heads, model.n_routed_experts)
    devices = [
        (share.device, [row for row in share.parts.items() if row[0] not in NOT_WEIGHTS])
        for share in (placement.ram, *placement.gpus)
    ]
    gpus = [machine.gpus[share.gpu_index].name for share in placement.gpus]
    parts = (
        machine_key(machine, sources_hash), shape, model.num_experts_per_tok, facts.bytes.layers,
        placement.cpus, placement.prefill_chunk, placement.gpu_layers, devices, gpus, is_random,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class SpeedKeeper:
    """Keeps what `speeds` says under `key`: now and then on a thread of its own, and at the end."""

    def __init__(
        self, key: str, speeds: Callable[[], Speeds], *, every_s: float = SAVE_EVERY_S
    ) -> None:
        self._key = key
        self._speeds = speeds
        self._every_s = every_s
        self._kept = Speeds()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ktops-speeds", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Keep what there is and end the thread. May be called again."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._every_s):
            self._save()
        self._save()

    def _save(self) -> None:
        speeds = self._speeds()
        if speeds != self._kept:
            keep_speeds(self._key, speeds, time.time())
            self._kept = speeds


def keep_speeds(key: str, speeds: Speeds, now: float) -> None:
    """Keep `speeds` for what `key` stands for, in place of what was known; what was not measured
    this time stays. A folder that cannot be written costs the figures."""
    path = _file()
    kept = {name: entry for name, entry in recall(path).items() if _latest(entry) > 0}
    entry = cast("dict[str, Any]", kept.pop(key, {"prompts": {}}))
    if speeds.decode is not None:
        entry["decode"] = {**asdict(speeds.decode), "at": now}
    prompts = {str(length): {**asdict(row), "at": now} for length, row in speeds.prompts.items()}
    entry["prompts"] = {**entry["prompts"], **prompts}
    newest = sorted(kept.items(), key=lambda row: _latest(row[1]))[-(MAX_ENTRIES - 1) :]
    remember(path, {**dict(newest), key: entry})


def _latest(entry: object) -> float:
    """When the last figure of an entry was kept, 0 for what is none."""
    speeds = _parsed(entry, is_random=False)
    found = [*speeds.prompts.values(), *([speeds.decode] if speeds.decode else [])]
    return max((measured.at for measured in found), default=0.0)


def _parsed(entry: object, *, is_random: bool) -> MeasuredSpeeds:
    """An entry of the file; nothing for what is damaged."""
    try:
        found = cast("dict[str, Any]", entry)
        prompts = {int(name): _measured(row) for name, row in found["prompts"].items()}
        decode = _measured(found["decode"]) if "decode" in found else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return MeasuredSpeeds(is_random=is_random)
    return MeasuredSpeeds(decode, MappingProxyType(prompts), is_random)


def _measured(row: Mapping[str, Any]) -> Measured:
    """Raises KeyError, TypeError or ValueError for what is no figure."""
    figure = Figure(float(row["tokens_per_s"]), int(row["num_tokens"]), int(row["length"]))
    at = float(row["at"])
    if not (0 < figure.tokens_per_s < float("inf") and figure.length > 0 and at > 0):
        raise ValueError(row)
    return Measured(figure, at)


def _file() -> Path:
    return state_folder(os.environ) / FILE
