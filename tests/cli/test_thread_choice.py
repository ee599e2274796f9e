"""Before a model is loaded: when numbers of threads are measured, and what the engine is told."""

from __future__ import annotations

import pytest

from ktops.hub.choose import choose_model
from ktops.launch.plan_stage import Site, look
from ktops.settings import load_settings
from ktops_engine import threads
from ktops_engine.plan import threads as plan_threads


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two questions was asked; one thread is the answer to both."""
    asked: list[str] = []

    def answer(question: str):
        def rates(machine):
            asked.append(question)
            return ((1, 100.0), (max(2, len(machine.cpus)), 50.0))

        return rates

    monkeypatch.setattr(threads, "thread_rates", answer("measure"))
    monkeypatch.setattr(threads, "remembered_thread_rates", answer("remember"))
    return asked


@pytest.fixture
def every_model_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_threads, "MEASURED_BYTES", 0)
    monkeypatch.setattr("ktops_engine.plan.MEASURED_BYTES", 0)


def site(**flags: object) -> Site:
    settings = load_settings(**flags)
    return look(settings, choose_model("demo", settings))


def test_the_demo_skips_measuring(work_dir, measured):
    assert site().placement.num_threads == len(site().machine.cpus)
    assert measured == []


@pytest.mark.usefixtures("every_model_is_large")
@pytest.mark.parametrize("flags", [{}, {"cpu_infer": "auto"}])
def test_a_large_model_is_computed_with_the_number_that_was_measured(work_dir, measured, flags):
    found = site(**flags)
    assert measured == ["measure"]
    assert found.placement.num_threads == 1
    assert found.placement.notes == ()


@pytest.mark.usefixtures("every_model_is_large")
def test_a_number_given_is_held_against_what_is_remembered_and_nothing_is_measured(
    work_dir, measured
):
    found = site(cpu_infer=len(site().machine.cpus))
    assert measured[1:] == ["remember"]
    if len(found.machine.cpus) > 1:
        assert "--cpu-infer auto takes 1" in found.placement.notes[0]
