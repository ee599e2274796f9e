"""How a prompt's experts are divided between GPU and CPU."""

from __future__ import annotations

import itertools
import random

import pytest

from ktops_engine.moe.expert_split import (
    STREAM_START,
    ExpertCost,
    Rates,
    corrected,
    split_experts,
)

COST = ExpertCost(num_bytes=25_000_000, flops=88_000_000)
RATES = Rates(stream=42e9, gpu_flops=150e12, cpu_bytes=150e9, cpu_flops=5e12)


def slower_side(counts: list[int], streamed: set[int], rates: Rates) -> float:
    gpu, cpu = STREAM_START if streamed else 0.0, 0.0
    for expert, count in enumerate(counts):
        if count and expert in streamed:
            gpu += max(COST.num_bytes / rates.stream, COST.flops * count / rates.gpu_flops)
        elif count:
            cpu += COST.num_bytes / rates.cpu_bytes + COST.flops * count / rates.cpu_flops
    return max(gpu, cpu)


def test_no_other_division_is_faster() -> None:
    draw = random.Random(3)
    for _ in range(20):
        counts = [draw.choice([0, 1, 5, 40, 200, 900]) for _ in range(8)]
        split = split_experts(counts, COST, RATES)
        best = min(
            slower_side(counts, set(some), RATES)
            for size in range(9)
            for some in itertools.combinations(range(8), size)
        )
        assert slower_side(counts, set(split.streamed), RATES) <= best * 1.25
        assert max(split.gpu_seconds, split.cpu_seconds) == pytest.approx(
            slower_side(counts, set(split.streamed), RATES)
        )


def test_every_expert_with_tokens_is_taken_once() -> None:
    counts = [3, 0, 900, 900, 1, 40, 0, 7]
    split = split_experts(counts, COST, RATES, resident={3, 6})
    taken = split.resident + split.streamed + split.cpu
    assert sorted(taken) == [0, 2, 3, 4, 5, 7]
    assert split.resident == (3,)


def test_few_tokens_stay_on_the_cpu() -> None:
    split = split_experts([1] * 8, COST, RATES)
    assert split.streamed == ()
    assert split.gpu_seconds == 0


def test_a_long_prompt_is_mostly_streamed() -> None:
    split = split_experts([512] * 256, COST, RATES)
    assert len(split.streamed) > 224
    assert split.gpu_seconds == pytest.approx(split.cpu_seconds, rel=0.1)


def test_the_crowded_experts_are_streamed() -> None:
    counts = [10, 400, 20, 300, 30, 200]
    split = split_experts(counts, COST, RATES)
    assert split.streamed
    assert min(counts[e] for e in split.streamed) >= max(counts[e] for e in split.cpu)


def test_without_tokens_nothing_is_done() -> None:
    split = split_experts([0, 0], COST, RATES)
    assert (split.resident, split.streamed, split.cpu) == ((), (), ())


def test_rates_approach_what_is_measured() -> None:
    rates = RATES
    truth = Rates(stream=20e9, gpu_flops=150e12, cpu_bytes=300e9, cpu_flops=10e12)
    for _ in range(40):
        split = split_experts([200] * 64, COST, rates)
        gpu = STREAM_START + len(split.streamed) * COST.num_bytes / truth.stream
        cpu = len(split.cpu) * (
            COST.num_bytes / truth.cpu_bytes + COST.flops * 200 / truth.cpu_flops
        )
        rates = corrected(rates, split, gpu, cpu)
    assert rates.stream == pytest.approx(truth.stream, rel=0.1)
    assert rates.cpu_flops == pytest.approx(truth.cpu_flops, rel=0.1)


def test_a_side_that_was_idle_keeps_its_rates() -> None:
    split = split_experts([1] * 8, COST, RATES)
    after = corrected(RATES, split, 0.0, 2 * split.cpu_seconds)
    assert after.stream == RATES.stream
    assert after.cpu_bytes < RATES.cpu_bytes


def test_one_hiccup_does_not_turn_the_plan_over() -> None:
    split = split_experts([512] * 64, COST, RATES)
    after = corrected(RATES, split, 1000 * split.gpu_seconds, split.cpu_seconds)
    assert after.stream > RATES.stream / 2
