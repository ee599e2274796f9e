"""Drawing tokens: greedy, filtered, penalised, repeatable, and safe with broken logits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ktops_engine import sampler
from ktops_engine.sampler import Best, Sampler, _likeliest, best_of, uniform
from ktops_engine.types import Request, SamplingParams

EOS = 0


def sample(logits, output=(), prompt=(5,), **params):
    request = Request("r", list(prompt), SamplingParams(**params), output_token_ids=list(output))
    return Sampler([EOS])(torch.tensor([logits]), [request])[0]


def draws(logits, count=400, **params):
    return Counter(sample(logits, seed=seed, **params).token_id for seed in range(count))


def test_temperature_zero_takes_the_likeliest():
    assert sample([0.0, 3.0, 2.9], temperature=0).token_id == 1


def test_draws_follow_the_softmax():
    logits = [2.0, 1.0, 0.0]
    expected = torch.tensor(logits).softmax(-1).tolist()
    counts = draws(logits, 2000, temperature=1.0, top_p=1.0)
    for token_id, probability in enumerate(expected):
        assert abs(counts[token_id] / 2000 - probability) < 0.05


def test_temperature_sharpens():
    assert draws([2.0, 1.0], temperature=0.1, top_p=1.0)[0] > 395


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2, "top_p": 1.0}, {0, 1}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"min_p": 0.5, "top_p": 1.0}, {0, 1}),
        ({"top_p": 0.0}, {0}),
    ],
)
def test_filters_keep_only_the_likely(params, allowed):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert set(draws(logits, temperature=1.0, **params)) == allowed


def test_a_large_flat_vocabulary_is_sorted_whole_when_the_candidates_are_not_enough():
    logits = [0.0] * 5000
    assert any(token_id > 1024 for token_id in draws(logits, 200, temperature=1.0, top_p=0.99))


VOCAB_SIZE = 20_000
FILTERS = [
    {"top_p": 1.0}, {"top_p": 0.95}, {"top_p": 0.5, "min_p": 1e-5}, {"top_p": 1.0, "min_p": 0.9},
    {"top_p": 1.0, "min_p": 1e-4}, {"top_p": 1.0, "top_k": 3000}, {"top_p": 0.9, "top_k": 3000},
    {"top_p": 0.9, "top_k": 40},
]  # fmt: skip


def plain_draw(probs: np.ndarray, params: SamplingParams, draw: float) -> float:
    """The probability of the token that is drawn when all are sorted."""
    probs = np.sort(probs.astype(np.float64))[::-1]
    kept = probs[: params.top_k or None]
    shares = kept / kept.sum()
    before = np.concatenate(([0.0], shares.cumsum()[:-1]))
    keep = (shares >= params.min_p * shares[0]) & ((params.top_p == 1) | (before < params.top_p))
    kept = kept[: max(1, int(keep.sum()))]
    sums = kept.cumsum()
    return kept[min(int((sums <= draw * sums[-1]).sum()), len(kept) - 1)]


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("temperature", [1e-40, 1e-3, 0.6, 2.0])
@pytest.mark.parametrize("filters", FILTERS)
def test_a_draw_is_that_of_the_whole_sorted_vocabulary(filters, temperature, spread):
    logits = torch.randn(1, VOCAB_SIZE) * spread
    probs = (logits / max(temperature, 1e-30)).softmax(-1)[0].numpy()
    for seed in range(3):
        params = SamplingParams(temperature=temperature, seed=seed, **filters)
        found = Sampler([EOS])(logits, [Request("r", [5], params)])[0].token_id
        # Of equally likely tokens either may come.
        wanted = plain_draw(probs, params, uniform(seed, 0))
        assert probs[found] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("filters", "spread", "most"),
    [
        ({"top_p": 1.0}, 8.0, 1024),
        ({"top_p": 1.0, "min_p": 0.5}, 1.0, 1024),
        ({"top_p": 0.95}, 8.0, 1024),
        ({"top_p": 0.2}, 1.0, 16 * 1024),
    ],
)
def test_no_more_tokens_are_sorted_than_tell_the_draw(monkeypatch, filters, spread, most):
    sizes = []

    def likeliest(probs, count):
        sizes.append(count)
        return _likeliest(probs, count)

    monkeypatch.setattr(sampler, "_likeliest", likeliest)
    logits = torch.randn(1, VOCAB_SIZE) * spread
    params = SamplingParams(temperature=1.0, seed=4, **filters)
    Sampler([EOS])(logits, [Request("r", [5], params)])
    assert max(sizes) <= most


def test_the_same_seed_draws_the_same_and_another_position_differs():
    logits = [0.0] * 1000
    first = [sample(logits, seed=7, temperature=1.0).token_id for _ in range(3)]
    assert len(set(first)) == 1
    assert sample(logits, seed=7, output=[3], temperature=1.0).token_id != first[0]


def test_penalties_and_biases_change_the_choice():
    assert sample([3.0, 2.9], output=[0], temperature=0, presence_penalty=0.2).token_id == 1
    assert sample([3.0, 2.9], output=[0], temperature=0, frequency_penalty=0.2).token_id == 1
    assert sample([3.0, 2.9], prompt=[0], temperature=0, repetition_penalty=1.2).token_id == 1
    assert sample([3.0, 2.9], prompt=[0], temperature=0, presence_penalty=2.0).token_id == 0
    assert sample([3.0, 2.9], temperature=0, logit_bias={1: 1.0}).token_id == 1


def test_stop_tokens_cannot_come_before_min_tokens():
    assert sample([3.0, 2.0, 1.0], temperature=0, min_tokens=1).token_id == 1
    assert sample([3.0, 2.0, 1.0], temperature=0, min_tokens=1, stop_token_ids=(1,)).token_id == 2
    assert sample([3.0, 2.0, 1.0], output=[2], temperature=0, min_tokens=1).token_id == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_own_request_only(broken, temperature):
    requests = [
        Request(name, [5], SamplingParams(temperature=temperature, seed=1)) for name in "ab"
    ]
    bad, good = Sampler([EOS])(torch.tensor([[0.0, broken], [0.0, 9.0]]), requests)
    assert bad.token_id is None
    assert "finite" in bad.error
    assert good.token_id == 1


def test_logprobs_are_those_of_the_model_before_temperature():
    answer = sample([2.0, 1.0, 0.0], temperature=0, logprobs=2)
    expected = torch.tensor([2.0, 1.0, 0.0]).log_softmax(-1).tolist()
    assert answer.logprobs.logprob == pytest.approx(expected[0])
    assert [token_id for token_id, _ in answer.logprobs.top] == [0, 1]
    assert [value for _, value in answer.logprobs.top] == pytest.approx(expected[:2])


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_uniform_lies_in_the_unit_interval(seed, position):
    assert 0.0 <= uniform(seed, position) < 1.0


PARAMS = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.3, "seed": 2, "top_p": 1.0, "top_k": 7},
    {"temperature": 1.0, "seed": 3, "min_p": 0.02, "logit_bias": {3: 5.0}},
    {"temperature": 0, "presence_penalty": 3.0},
    {"temperature": 2.0, "seed": 4, "top_p": 0.999},
]


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_requests_that_share_a_step_draw_what_each_draws_alone(spread):
    logits = torch.randn(len(PARAMS), 3000) * spread
    requests = [
        Request(str(i), [5], SamplingParams(**params, logprobs=2), output_token_ids=[3] * i)
        for i, params in enumerate(PARAMS)
    ]
    draw = Sampler([EOS])
    together = draw(logits, requests)
    alone = [draw(row[None], [request])[0] for row, request in zip(logits, requests, strict=True)]
    assert together == alone


def test_the_likeliest_tokens_may_be_known_already():
    logits = torch.randn(2, 50)
    requests = [Request(name, [5], SamplingParams(temperature=0)) for name in "ab"]
    best = Best([7, 9], [1.5, float("nan")])
    first, second = Sampler([EOS])(logits, requests, best)
    assert first.token_id == 7
    assert second.token_id is None


@given(st.integers(1, 3), st.integers(1, 3000))
def test_the_likeliest_tokens_are_those_of_the_greatest_logits(num_rows, vocab_size):
    logits = torch.randn(num_rows, vocab_size)
    best = best_of(logits)
    assert list(best.token_ids) == logits.argmax(1).tolist()
    assert list(best.logits) == logits.max(1).values.tolist()
