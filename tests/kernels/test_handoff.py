"""Experts on the CPU that kernels ask for: the same results, and no step that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from handoff_model import HIDDEN, NUM_EXPERTS, Model, direct, random_request

from ktops_engine.errors import KtopsError
from ktops_engine.kernels.routing import Routing
from ktops_engine.native.build import BuildInfo
from ktops_engine.native.load import load_native


@pytest.fixture
def model(native_build: BuildInfo, device: torch.device) -> Iterator[Model]:
    native = load_native(native_build)
    with native.create_pool([0, 1]) as pool:
        yield Model(native, pool, torch.device(device))


def on_device(model: Model, *parts: torch.Tensor) -> Routing:
    return Routing(*(part.to(model.device) for part in parts))


def eager_step(model: Model, layer: int, num_tokens: int, seed: int) -> None:
    """One request from beginning to end, compared with a direct call, bit for bit."""
    x, ids, weights = random_request(num_tokens, seed)
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(num_tokens, HIDDEN, generator=generator)
    expected = residual + direct(model, layer, x.float(), ids, weights)
    guarded = torch.full((num_tokens + 2, HIDDEN), -7.5, device=model.device)
    guarded[1:-1] = residual
    model.handoff.post(layer, on_device(model, x, ids, weights))
    model.handoff.serve(1)
    model.handoff.take(guarded[1:-1])
    found = guarded.cpu()
    model.handoff.check()
    assert torch.equal(found[1:-1], expected)
    assert (found[[0, -1]] == -7.5).all()


@pytest.mark.parametrize("num_tokens", [1, 3, 16])
def test_a_request_has_the_result_of_a_direct_call(model: Model, num_tokens: int) -> None:
    for layer in range(3):
        eager_step(model, layer, num_tokens, seed=layer)


def test_experts_read_are_counted_once_a_request(model: Model) -> None:
    x, _, weights = random_request(2, 0)
    ids = torch.tensor([[0, -1], [3, 0]], dtype=torch.int32)
    model.handoff.post(0, on_device(model, x, ids, weights))
    model.handoff.serve(1)
    traffic = model.handoff.traffic
    assert traffic.num_bytes == 2 * model.expert_bytes
    assert traffic.seconds > 0


def test_experts_that_lie_on_the_gpu_are_not_asked_for(model: Model) -> None:
    x, ids, weights = random_request(5, 3)
    slots = torch.tensor([-1, 0, -1, -1, 2, -1, 1, -1], dtype=torch.int32)
    left = torch.where((ids >= 0) & (slots[ids] < 0), ids, -1)
    expected = direct(model, 0, x.float(), left, weights)
    model.handoff.post(0, on_device(model, x, ids, weights), slots.to(model.device))
    model.handoff.serve(1)
    found = torch.zeros(5, HIDDEN, device=model.device)
    model.handoff.take(found)
    model.handoff.check()
    assert torch.equal(found.cpu(), expected)
    assert model.handoff.traffic.num_bytes == len(left.unique()) * model.expert_bytes - (
        model.expert_bytes if -1 in left else 0
    )


def post_and_take(model: Model, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
    """A step that must fail and add nothing; the next ones, until the reset, as well."""
    residual = torch.ones(x.shape[0], HIDDEN, device=model.device)
    for _ in range(2):
        model.handoff.take(residual)
        model.handoff.post(0, on_device(model, x, ids, weights))
    model.handoff.take(residual)
    assert (residual == 1).all()
    assert model.handoff.failed
    with pytest.raises(KtopsError, match="waited in vain") as caught:
        model.handoff.check()
    assert caught.value.code == "handoff-timeout"


def test_an_answer_that_does_not_come_fails_the_step_and_no_other(model: Model) -> None:
    model.handoff.set_patience(0.02)
    x, ids, weights = random_request(2, 1)
    model.handoff.post(0, on_device(model, x, ids, weights))
    post_and_take(model, x, ids, weights)
    with pytest.raises(KtopsError) as caught:
        model.handoff.serve(2, timeout_seconds=5)
    assert caught.value.code == "handoff-timeout"
    model.handoff.reset()
    model.handoff.set_patience(10)
    assert not model.handoff.failed
    eager_step(model, 1, 2, seed=5)


def test_an_expert_that_is_not_there_is_refused_and_the_gpu_told(model: Model) -> None:
    x, ids, weights = random_request(2, 1)
    ids[1, 0] = NUM_EXPERTS
    model.handoff.post(0, on_device(model, x, ids, weights))
    with pytest.raises(KtopsError, match="expert id") as caught:
        model.handoff.serve(1)
    assert caught.value.code == "native-call"
    started = time.monotonic()
    post_and_take(model, x, ids, weights)
    assert time.monotonic() - started < 9  # of 10 s of patience
    model.handoff.reset()
    eager_step(model, 0, 1, seed=6)


def test_a_gpu_that_does_not_ask_and_a_cancelled_step_end_with_an_error(model: Model) -> None:
    with pytest.raises(KtopsError, match=r"0\.01 s") as caught:
        model.handoff.serve(1, timeout_seconds=0.01)
    assert caught.value.code == "handoff-timeout"
    model.handoff.reset()
    model.handoff.cancel()
    with pytest.raises(KtopsError) as caught:
        model.handoff.serve(1)
    assert caught.value.code == "handoff-cancelled"
    model.handoff.reset()
    eager_step(model, 2, 1, seed=7)


def test_what_does_not_fit_the_block_is_refused(model: Model) -> None:
    x, ids, weights = (tensor.to(model.device) for tensor in random_request(2, 1))
    many = torch.zeros(17, HIDDEN, dtype=torch.bfloat16, device=model.device)
    for layer, *parts in (
        (0, x.float(), ids, weights),
        (0, x[:, ::2], ids, weights),
        (0, x, ids.long(), weights),
        (0, x, ids, weights[:1]),
        (3, x, ids, weights),
        (-1, x, ids, weights),
        (0, many, ids, weights),
        (0, x[:0], ids[:0], weights[:0]),
    ):
        with pytest.raises(ValueError, match=r"expected|layer"):
            model.handoff.post(layer, Routing(*parts))
    for residual in (x, x.float()[:, :8]):
        with pytest.raises(ValueError, match="residual"):
            model.handoff.take(residual)


@pytest.mark.gpu
def test_a_graph_of_58_layers_gives_the_results_of_direct_calls_50_times(model: Model) -> None:
    step = model.captured_step(num_layers=58, num_tokens=3)
    for seed in range(50):
        step.initial.copy_(torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(seed)))
        step.run()
        assert torch.equal(step.residual.cpu(), step.expected(step.initial.cpu()))


@pytest.mark.gpu
def test_a_graph_without_a_server_ends_at_its_deadline_and_works_after_a_reset(
    model: Model,
) -> None:
    step = model.captured_step(num_layers=58, num_tokens=1)
    step.run()
    expected = step.residual.clone()
    model.handoff.set_patience(0.05)
    started = time.monotonic()
    step.graph.replay()
    torch.cuda.synchronize()
    assert 0.04 < time.monotonic() - started < 1  # one deadline, not 58
    assert model.handoff.failed
    assert torch.equal(step.residual, step.initial)
    model.handoff.reset()
    model.handoff.set_patience(10)
    step.run()
    assert torch.equal(step.residual, expected)


@contextmanager
def steps(native_build: BuildInfo, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs steps and says how they went."""
    program = "import handoff_model; handoff_model.main()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(native_build.path), *arguments],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.gpu
def test_a_process_that_is_stopped_for_too_long_loses_one_step(native_build: BuildInfo) -> None:
    with steps(native_build, "stop", "1.0") as child:
        os.waitpid(child.pid, os.WUNTRACED)
        time.sleep(1.5)
        child.send_signal(signal.SIGCONT)
        said, _ = child.communicate(timeout=60)
    assert said.splitlines() == ["handoff-timeout", "the next one works"]


@pytest.mark.gpu
def test_a_process_that_is_killed_leaves_no_kernel_behind(native_build: BuildInfo) -> None:
    with steps(native_build, "hang", "600.0") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "hanging\n"
        child.kill()
        assert child.wait(30) == -signal.SIGKILL
    x = torch.ones(1024, 1024, device="cuda")
    assert (x @ x)[0, 0].item() == 1024
