"""The number of CPU threads: measured once a machine, used where it matters, overridden by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ktops_engine import threads
from ktops_engine.machine import MachineFacts, detect_machine
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.load import load_native
from ktops_engine.plan.threads import MEASURED_BYTES, best_threads, choose_cpus
from ktops_engine.threads import (
    Measurement,
    remembered_thread_rates,
    thread_counts,
    thread_rates,
)

RATES = ((4, 40.0), (8, 80.0), (12, 100.0), (14, 99.0), (16, 30.0))
MACHINE = MachineFacts(
    cpus=tuple(range(16)), total_ram_bytes=1 << 36, available_ram_bytes=1 << 36, thread_rates=RATES
)
LARGE = MEASURED_BYTES + 1


class Measurer:
    """Stands for a measurement and counts how often it was made."""

    def __init__(self, rates=RATES, is_steady=True) -> None:
        self.answer, self.calls = Measurement(rates, is_steady), 0

    def __call__(self, native, machine):
        self.calls += 1
        return self.answer


@pytest.fixture
def cache(native_build: BuildInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache beside a built library."""
    monkeypatch.setattr(threads, "find_current", lambda: native_build)
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / threads.FILE


def test_the_best_number_is_the_largest_that_is_about_as_fast():
    assert best_threads(RATES) == 14
    assert best_threads([(1, 2.0), (2, 1.0)]) == 1


def test_without_a_wish_a_large_model_takes_what_was_measured():
    assert choose_cpus(None, MACHINE, LARGE) == (tuple(range(14)), ())


def test_a_small_model_takes_every_core():
    assert choose_cpus(None, MACHINE, MEASURED_BYTES)[0] == MACHINE.cpus


def test_an_unmeasured_machine_takes_every_core():
    assert choose_cpus(None, replace(MACHINE, thread_rates=()), LARGE)[0] == MACHINE.cpus


def test_a_number_is_obeyed_and_a_poor_one_is_remarked_on():
    cpus, notes = choose_cpus(16, MACHINE, LARGE)
    assert cpus == MACHINE.cpus
    (note,) = notes
    assert note == (
        "--cpu-infer 16 was measured to give 30 % of the best on this machine; "
        "--cpu-infer auto takes 14"
    )


def test_a_number_between_those_measured_is_judged_by_its_neighbours():
    assert choose_cpus(13, MACHINE, LARGE) == (MACHINE.cpus[:13], ())
    assert "60 %" in choose_cpus(6, MACHINE, LARGE)[1][0]
    assert "10 %" in choose_cpus(1, MACHINE, LARGE)[1][0]


def test_a_number_beyond_the_cores_is_capped_and_judged_as_what_is_started():
    cpus, (capped, poor) = choose_cpus(65, MACHINE, LARGE)
    assert cpus == MACHINE.cpus
    assert "--cpu-infer 65 is more than the 16 physical cores" in capped
    assert "--cpu-infer 16 was measured" in poor


def test_a_measurement_is_made_once_and_remembered(cache):
    measurer = Measurer()
    assert remembered_thread_rates(MACHINE) == ()
    assert thread_rates(MACHINE, measurer) == RATES
    assert thread_rates(MACHINE, measurer) == RATES
    assert remembered_thread_rates(MACHINE) == RATES
    assert measurer.calls == 1


def test_other_cores_are_another_machine(cache):
    measurer = Measurer()
    thread_rates(MACHINE, measurer)
    thread_rates(replace(MACHINE, cpus=(0, 1)), measurer)
    assert measurer.calls == 2
    assert remembered_thread_rates(MACHINE) == RATES


def test_other_kernels_are_measured_anew(cache):
    measurer = Measurer()
    thread_rates(MACHINE, measurer)
    assert remembered_thread_rates(replace(MACHINE, isa="scalar")) == ()
    thread_rates(replace(MACHINE, isa="scalar"), measurer)
    assert measurer.calls == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"%s": 7}', '{"%s": [["x"]]}'])
def test_a_damaged_memory_costs_measuring_again(cache, native_build, content):
    key = threads.machine_key(MACHINE, native_build.sources_hash)
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("%s", key))
    assert thread_rates(MACHINE, Measurer()) == RATES
    assert json.loads(cache.read_text())[key] == [list(row) for row in RATES]


def test_a_measurement_that_failed_is_not_remembered(cache):
    assert thread_rates(MACHINE, Measurer(())) == ()
    assert not cache.exists()


def test_a_disturbed_measurement_is_used_and_not_remembered(cache):
    assert thread_rates(MACHINE, Measurer(is_steady=False)) == RATES
    assert not cache.exists()


def test_nothing_is_measured_on_one_core_or_without_a_library(cache, monkeypatch):
    measurer = Measurer()
    assert thread_rates(replace(MACHINE, cpus=(0,)), measurer) == ()
    monkeypatch.setattr(threads, "find_current", lambda: None)
    assert thread_rates(MACHINE, measurer) == ()
    assert remembered_thread_rates(MACHINE) == ()
    assert measurer.calls == 0


def test_counts_go_from_a_quarter_of_the_cores_to_all():
    assert thread_counts(64) == (16, 32, 48, 56, 64)
    assert thread_counts(2) == (1, 2)


def test_the_measurement_gives_a_rate_for_each_number(native_build, monkeypatch):
    monkeypatch.setattr(threads, "SECONDS_PER_FIGURE", 0.0)
    monkeypatch.setattr(threads, "ROUNDS", 1)
    monkeypatch.setattr(threads, "working_set_bytes", lambda machine: 1)
    machine = replace(detect_machine(), available_ram_bytes=1 << 36)
    rates = threads.measure_thread_rates(load_native(native_build), machine).rates
    assert [count for count, _ in rates] == list(thread_counts(len(machine.cpus)))
    assert all(rate > 0 for _, rate in rates)


def test_a_machine_without_spare_memory_is_not_measured(native_build):
    poor = replace(MACHINE, available_ram_bytes=1 << 30)
    assert threads.measure_thread_rates(load_native(native_build), poor).rates == ()
