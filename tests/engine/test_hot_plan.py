"""Which experts get copies in spare GPU memory, and when whole layers are better."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_models import GIB, config, described, machine

from ktops.settings import ALL_GPU_MEMORY
from ktops_engine.plan import ExpertUse, Part, Prediction, choose_hot, place, place_served, predict

R1 = described()
unhurried = settings(deadline=None, max_examples=50)  # the machine may be busy
HOST = machine(vram=(48 * GIB,))
WISH = {"gpu_memory_bytes": 40 * GIB}


def zipf(exponent: float, layers: int = 58, experts: int = 256, seed: int = 1) -> ExpertUse:
    """Shares that fall with the rank, in another order in every layer."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(1, experts + 1, dtype=float) ** -exponent
    rows = [rng.permutation(1e6 * ranks / ranks.sum()).astype(int) for _ in range(layers)]
    return ExpertUse(tuple(tuple(row.tolist()) for row in rows))


SKEWED, EVEN = zipf(1.0), zipf(0.0)


def r1_with(use):
    return dataclasses.replace(R1, expert_use=use)


def placed(use=SKEWED, host=HOST, **wishes):
    return place(config(**wishes), r1_with(use), host)


tables = st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=1, max_size=5).map(
    lambda rows: ExpertUse(tuple(map(tuple, rows)))
)


@unhurried
@given(use=tables, num=st.integers(0, 40), first=st.integers(0, 5))
def test_no_expert_that_is_left_out_is_chosen_more_often(use, num, first):
    chosen = choose_hot(use, num, first)
    shares = use.shares
    taken = [(layer, e) for layer, experts in enumerate(chosen) for e in experts]
    assert len(chosen) == len(use.counts)
    assert len(set(taken)) == len(taken) <= num
    assert all(layer >= first for layer, _ in taken)
    assert all(use.counts[layer][e] > 0 for layer, e in taken)
    left = [
        shares[layer, e]
        for layer in range(first, len(use.counts))
        for e in range(6)
        if (layer, e) not in taken and use.counts[layer][e]
    ]
    if left:
        assert len(taken) == num
        assert min((shares[at] for at in taken), default=1) >= max(left)


@unhurried
@given(use=tables, num=st.integers(0, 30), more=st.integers(0, 10))
def test_more_copies_keep_those_of_fewer(use, num, more):
    few, many = choose_hot(use, num), choose_hot(use, num + more)
    assert all(set(a) <= set(b) for a, b in zip(few, many, strict=True))


def test_layers_that_were_counted_less_are_judged_by_their_own_shares():
    use = ExpertUse(((90, 10, 0, 0), (9, 1, 0, 0)))
    assert choose_hot(use, 2) == ((0,), (0,))


def test_the_less_is_known_the_more_alike_experts_are_taken_to_be():
    few, many = (ExpertUse(((n, 0, 0, n),)).shares[0] for n in (2, 2000))
    assert 0.25 < few[0] < 0.3
    assert 0.49 < many[0] < 0.5
    assert few.sum() == pytest.approx(1)
    assert not ExpertUse(((0, 0),)).shares.any()


def test_skewed_use_puts_copies_into_a_budget_and_everything_stays_in_ram():
    placement = placed(**WISH)
    (gpu,) = placement.gpus
    assert placement.gpu_expert_layers == 0
    assert placement.ram.routed_bytes == R1.bytes.routed_experts
    assert placement.hot_experts > 900
    assert 38 * GIB < gpu.total_bytes <= 40 * GIB
    assert gpu.parts[Part.HOT_EXPERTS] == placement.hot_bytes
    assert 0.3 < placement.hot_share < 0.7
    chosen = choose_hot(SKEWED, placement.hot_experts)
    share = np.mean([SKEWED.shares[layer, list(ids)].sum() for layer, ids in enumerate(chosen)])
    assert placement.hot_share == pytest.approx(share, rel=0.1)


def test_even_use_puts_whole_layers_there_and_copies_only_in_what_is_left():
    without = placed(None, **WISH)
    placement = placed(EVEN, **WISH)
    assert placement.gpu_expert_layers == without.gpu_expert_layers == 3
    assert 0 < placement.hot_bytes < 7 * GIB
    assert placement.vram_bytes <= 40 * GIB


def test_what_ram_cannot_hold_goes_to_the_gpu_in_whole_layers_first():
    host = machine(320 * GIB, vram=(96 * GIB,))
    placement = placed(host=host, gpu_memory_bytes=ALL_GPU_MEMORY)
    needed = place(config(), R1, host)
    assert placement.fits
    assert needed.gpu_expert_layers > 0
    assert placement.gpu_expert_layers >= needed.gpu_expert_layers
    assert placement.hot_experts > 0
    chosen = choose_hot(SKEWED, placement.hot_experts, placement.gpu_expert_layers)
    assert not any(chosen[: placement.gpu_expert_layers])
    assert sum(map(len, chosen)) == placement.hot_experts


def test_a_further_gpu_takes_whole_layers_while_the_first_takes_copies():
    host = machine(vram=(48 * GIB, 48 * GIB))
    placement = placed(host=host, **WISH)
    first, second = placement.gpus
    assert (first.routed_bytes, second.hot_bytes) == (0, 0)
    assert first.hot_bytes > 20 * GIB
    assert second.routed_bytes > 30 * GIB
    assert placement.expert_layers_by_gpu == (0, 5)
    chosen = choose_hot(SKEWED, placement.hot_experts, placement.gpu_expert_layers)
    assert not any(chosen[:5])


@pytest.mark.parametrize(
    ("facts", "wish"),
    [
        (r1_with(SKEWED), {}),
        (r1_with(None), WISH),
        (dataclasses.replace(r1_with(SKEWED), can_stay_on_gpu=False), WISH),
        (r1_with(SKEWED), {"gpu_experts": 0}),
    ],
    ids=["no memory is given", "nothing is known", "no kernels", "none are wished for"],
)
def test_there_are_no_copies_where(facts, wish):
    placement = place(config(**wish), facts, HOST)
    assert (placement.hot_experts, placement.hot_share, placement.hot_bytes) == (0, 0, 0)
    assert placement == place(config(**wish), dataclasses.replace(facts, expert_use=None), HOST)


def test_a_gpu_too_small_for_what_every_token_uses_holds_no_copies():
    assert placed(host=machine(vram=(11 * GIB,)), gpu_memory_bytes=ALL_GPU_MEMORY).hot_experts == 0


def test_a_number_of_experts_need_not_be_one_of_layers():
    placement = place_served(config(gpu_experts=300), r1_with(SKEWED), HOST)
    assert (placement.gpu_experts, placement.hot_experts) == (0, 300)
    assert placement.notes == ()


@unhurried
@given(budget=st.integers(10, 200), more=st.integers(0, 50), exponent=st.floats(0, 2))
def test_more_memory_never_saves_fewer_reads(budget, more, exponent):
    use, host = zipf(exponent, seed=0), machine(vram=(300 * GIB,))
    token = R1.config.num_experts_per_tok / R1.config.n_routed_experts

    def saved(size):
        placement = placed(use, host, gpu_memory_bytes=size * GIB, ctx_size=512)
        for share in placement.gpus:
            assert share.total_bytes <= share.usable_bytes
        layers = sum(share.routed_bytes for share in placement.gpus) * token
        return layers + placement.hot_share * token * R1.bytes.routed_experts

    # Larger chunks of prompts take some of what is given, so that only much more is more.
    assert saved(budget + more + 8) >= saved(budget) * 0.999


def test_copies_make_the_prediction_faster():
    def rates(use):
        found = predict(placed(use, **WISH), r1_with(use), HOST)
        assert isinstance(found, Prediction)
        return found

    hot, layers = rates(SKEWED), rates(None)
    for end in (0, 1):
        assert hot.decode_tokens_per_s[end] > 1.2 * layers.decode_tokens_per_s[end]
        assert hot.prefill_tokens_per_s[end] > 0.999 * layers.prefill_tokens_per_s[end]


def test_a_model_whose_used_experts_are_all_copied_is_still_predicted():
    counts = np.zeros((58, 256), dtype=int)
    counts[:, :16] = 100_000
    use = ExpertUse(tuple(tuple(row.tolist()) for row in counts))
    placement = placed(use, **WISH)
    assert placement.hot_share == pytest.approx(1, abs=2e-3)
    found = predict(placement, r1_with(use), HOST)
    assert isinstance(found, Prediction)
    assert found.decode_tokens_per_s[0] > 0
