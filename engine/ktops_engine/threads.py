"""With how many threads this machine computes experts fastest: measured once, then remembered."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from ktops_engine.bandwidth import working_set_bytes
from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import SHAPES
from ktops_engine.bench.timing import LayerCall, pinned
from ktops_engine.machine import MachineFacts
from ktops_engine.native.build import find_current
from ktops_engine.native.load import Native, Pool, load_native
from ktops_engine.nodes import nodes_of_cpus
from ktops_engine.remembered import cache_file, keep, machine_key, recall

Rates = tuple[tuple[int, float], ...]

FILE = "thread-rates.json"
SHARES = (1.0, 7 / 8, 3 / 4, 1 / 2, 1 / 4)  # of the cores
ROUNDS = 2
SECONDS_PER_FIGURE = 0.12
STEADY_SHARE = 0.85  # of a rate, that its other rounds reach on a machine at rest


@dataclass(frozen=True)
class Measurement:
    """Calls/s by number of threads, fewest threads first, and whether the rounds agreed."""

    rates: Rates
    is_steady: bool


Measurer = Callable[[Native, MachineFacts], Measurement]


def remembered_thread_rates(machine: MachineFacts) -> Rates:
    """What was measured on this machine with this library: (threads, calls/s), fewest threads
    first; empty when nothing was."""
    info = find_current()
    if info is None:
        return ()
    return _rates(recall(cache_file(FILE)).get(machine_key(machine, info.sources_hash)))


def thread_rates(machine: MachineFacts, measurer: Measurer | None = None) -> Rates:
    """The same, measured where nothing is remembered, which takes under three seconds. What a
    neighbour disturbed is used, and not remembered.

    Empty without a native library, or where there is not enough free memory to measure. Raises
    KtopsError when the library is there and cannot be loaded.
    """
    info = find_current()
    if info is None or len(machine.cpus) < 2:
        return ()
    key = machine_key(machine, info.sources_hash)
    if rates := _rates(recall(cache_file(FILE)).get(key)):
        return rates
    measured = (measurer or measure_thread_rates)(load_native(info), machine)
    if measured.rates and measured.is_steady:
        keep(cache_file(FILE), key, measured.rates)
    return measured.rates


def thread_counts(num_cores: int) -> tuple[int, ...]:
    """Numbers of threads to try, fewest first."""
    return tuple(sorted({max(1, round(share * num_cores)) for share in SHARES}))


def measure_thread_rates(native: Native, machine: MachineFacts) -> Measurement:
    """Calls/s of a layer of R1's shape with one token, for each number of threads in turns; the
    better of the rounds, so that a passing neighbour decides nothing."""
    import numpy as np

    shape = SHAPES["r1"]
    wanted = working_set_bytes(machine)
    if wanted is None:
        return Measurement((), is_steady=False)
    num_experts = max(wanted // shape.expert_bytes, shape.num_experts_per_tok)
    shape = replace(shape, num_experts=num_experts)
    rounds: dict[int, list[float]] = {n: [] for n in thread_counts(len(machine.cpus))}
    nodes = nodes_of_cpus(machine.cpus)
    with native.create_pool(machine.cpus, nodes) as pool:
        layer = ExpertLayer(native, pool, shape)
    with layer, pinned(machine.cpus[0]):
        call = LayerCall(shape, 1, np.random.default_rng(1))
        for _ in range(ROUNDS):
            for threads, rates in rounds.items():
                with native.create_pool(machine.cpus[:threads], nodes[:threads]) as pool:
                    rates.append(_rate(pool, layer, call))
    return Measurement(
        rates=tuple((threads, max(rates)) for threads, rates in rounds.items()),
        is_steady=all(min(rates) >= STEADY_SHARE * max(rates) for rates in rounds.values()),
    )


def _rate(pool: Pool, layer: ExpertLayer, call: LayerCall) -> float:
    seconds: list[float] = []
    call.run(layer, pool)
    end = time.perf_counter() + SECONDS_PER_FIGURE
    while len(seconds) < 3 or time.perf_counter() < end:
        call.redraw()
        seconds.append(call.run(layer, pool))
    return 1 / statistics.median(seconds)


def _rates(value: object) -> Rates:
    """Remembered rates; none for anything else that a file may hold."""
    try:
        rows = cast("list[tuple[int, float]]", value or [])
        return tuple((int(threads), float(rate)) for threads, rate in rows)
    except (TypeError, ValueError):
        return ()
