"""What counts as a speed of the engine, and what does not."""

from __future__ import annotations

import random
import statistics

import pytest

from ktops_engine.speed_meter import (
    MAX_STEPS,
    MIN_STEPS,
    WARM_UP_STEPS,
    SpeedMeter,
    Speeds,
    prompt_class,
)
from ktops_engine.types import Batch, BatchItem, Request, Sampled, SamplingParams

TOKEN = Sampled(7)


def request(name: str, prompt: int) -> Request:
    return Request(name, [5] * prompt, SamplingParams())


def item(who: Request, start: int, num_tokens: int = 1) -> BatchItem:
    return BatchItem(
        who, start, num_tokens, samples=start + num_tokens >= len(who.prompt_token_ids)
    )


def decode(meter: SpeedMeter, seconds: list[float], start: int = 100) -> None:
    """One request that decodes alone."""
    who = request("a", start)
    for index, taken in enumerate(seconds):
        meter.add(Batch((item(who, start + index),)), [TOKEN], taken)


def read(meter: SpeedMeter, prompt: int, seconds: float, chunk: int = 4096) -> None:
    """One prompt alone, a chunk at a time, each of which takes `seconds`."""
    who = request(f"prompt of {prompt}", prompt)
    for start in range(0, prompt, chunk):
        step = item(who, start, min(chunk, prompt - start))
        meter.add(Batch((step,)), [TOKEN] if step.samples else [], seconds)


def warm() -> SpeedMeter:
    """A meter past its first steps and its first prompt."""
    meter = SpeedMeter()
    decode(meter, [1.0] * WARM_UP_STEPS)
    read(meter, 512, 1.0)
    assert meter.speeds() == Speeds()
    return meter


def test_decode_is_the_median_step_of_one_request():
    meter = warm()
    drawn = [random.uniform(0.01, 0.02) for _ in range(101)]
    drawn[7] = 60.0  # somebody stopped the process
    decode(meter, drawn, start=300)
    found = meter.speeds().decode
    assert found.tokens_per_s == pytest.approx(1 / statistics.median(drawn))
    assert (found.num_tokens, found.length) == (101, 350)


def test_few_steps_say_nothing():
    meter = warm()
    decode(meter, [0.01] * (MIN_STEPS - 1))
    assert meter.speeds().decode is None
    decode(meter, [0.01])
    assert meter.speeds().decode.tokens_per_s == pytest.approx(100)


def test_old_steps_are_forgotten():
    meter = warm()
    decode(meter, [1.0] * 100)
    decode(meter, [0.5] * MAX_STEPS)
    assert meter.speeds().decode.num_tokens == MAX_STEPS
    assert meter.speeds().decode.tokens_per_s == 2.0


def test_steps_that_requests_share_or_that_failed_do_not_count():
    meter = warm()
    one, two = request("a", 4), request("b", 4)
    for start in range(4, 4 + 2 * MIN_STEPS):
        meter.add(Batch((item(one, start), item(two, start))), [TOKEN, TOKEN], 9.0)
        meter.add(Batch((item(one, start),)), [Sampled(None, error="lost")], 9.0)
    assert meter.speeds() == Speeds()


def test_a_prompt_is_all_its_chunks_by_the_class_of_its_length():
    meter = warm()
    read(meter, 10_000, 2.0)  # three chunks
    read(meter, 700, 0.5)
    read(meter, 600, 0.25)
    read(meter, 511, 0.1)
    prompts = meter.speeds().prompts
    assert list(prompts) == [512, 8192]
    assert prompts[8192].tokens_per_s == pytest.approx(10_000 / 6)
    assert (prompts[8192].num_tokens, prompts[8192].length) == (10_000, 10_000)
    assert prompts[512].tokens_per_s == pytest.approx(statistics.median([700 / 0.5, 600 / 0.25]))
    assert (prompts[512].num_tokens, prompts[512].length) == (1300, 650)


def test_a_prompt_beside_a_decode_or_whose_beginning_was_cached_does_not_count():
    meter = warm()
    long, other = request("long", 8192), request("other", 4)
    meter.add(Batch((item(long, 0, 4096),)), [], 1.0)
    meter.add(Batch((item(other, 9), item(long, 4096, 4096))), [TOKEN, TOKEN], 1.0)
    meter.add(Batch((item(request("cached", 8192), 4096, 4096),)), [TOKEN], 1.0)
    assert meter.speeds() == Speeds()


def test_a_prompt_that_another_one_ended_does_not_count():
    meter = warm()
    first = request("first", 8192)
    meter.add(Batch((item(first, 0, 4096),)), [], 1.0)
    read(meter, 1024, 1.0)
    meter.add(Batch((item(first, 4096, 4096),)), [TOKEN], 1.0)
    assert list(meter.speeds().prompts) == [1024]


@pytest.mark.parametrize(
    ("length", "expected"), [(512, 512), (1023, 512), (1024, 1024), (4096, 4096), (9000, 8192)]
)
def test_prompts_between_powers_of_two_are_alike(length, expected):
    assert prompt_class(length) == expected
