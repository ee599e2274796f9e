"""How many CPU threads compute the experts. Pure: a wish and what was measured -> CPUs.

More threads than the memory can feed cost time, and one busy neighbour on the last core can cost
half of it, so the number that is best on a machine is measured there (`ktops_engine.threads`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.machine import MachineFacts
from ktops_engine.text import Text, text

# Smaller models are as fast with any number, and load faster than anything is measured.
MEASURED_BYTES = 1 << 30
# A larger number may be this much slower in decode: it is faster in prompts.
GOOD_SHARE = 0.97
# An explicit number below this share of the best is remarked on.
POOR_SHARE = 0.9

ThreadRates = Sequence[tuple[int, float]]


def best_threads(rates: ThreadRates) -> int:
    """The largest number of threads whose rate is about the best. `rates` must not be empty."""
    best = max(rate for _, rate in rates)
    return max(threads for threads, rate in rates if rate >= GOOD_SHARE * best)


def choose_cpus(
    cpu_infer: int | None, machine: MachineFacts, weights_bytes: int
) -> tuple[tuple[int, ...], tuple[Text, ...]]:
    """The CPUs to compute on, and remarks about the wish.

    None takes what was measured to be best, every core where nothing was. A number is obeyed up to
    the cores there are. Raises KtopsError: invalid-cpu-infer (status 2).
    """
    num_cores = len(machine.cpus)
    rates = machine.thread_rates if weights_bytes > MEASURED_BYTES else ()
    if cpu_infer is None:
        return machine.cpus[: best_threads(rates) if rates else num_cores], ()
    if cpu_infer < 1:
        raise KtopsError(
            "invalid-cpu-infer",
            text(
                "--cpu-infer {count}: at least one CPU thread must compute the experts",
                count=cpu_infer,
            ),
            f"ktops serve --cpu-infer {num_cores}",
            exit_status=EXIT_USAGE,
        )
    notes = []
    if cpu_infer > num_cores:
        notes.append(
            text(
                "--cpu-infer {asked} is more than the {cores} physical cores this process may use: "
                "{cores} threads are started",
                asked=cpu_infer,
                cores=num_cores,
            )
        )
    chosen = min(cpu_infer, num_cores)
    if rates and (share := _share(chosen, rates)) < POOR_SHARE:
        notes.append(
            text(
                "--cpu-infer {threads} was measured to give {percent} % of the best on this "
                "machine; --cpu-infer auto takes {best}",
                threads=chosen,
                percent=round(100 * share),
                best=best_threads(rates),
            )
        )
    return machine.cpus[:chosen], tuple(notes)


def _share(threads: int, rates: ThreadRates) -> float:
    """The rate of a number of threads over the best, on lines between those measured."""
    best = max(rate for _, rate in rates)
    below = max((row for row in rates if row[0] <= threads), default=(0, 0.0))
    above = min((row for row in rates if row[0] >= threads), default=below)
    if above[0] == below[0]:
        return below[1] / best
    part = (threads - below[0]) / (above[0] - below[0])
    return (below[1] + part * (above[1] - below[1])) / best
