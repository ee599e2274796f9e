"""A GPU whose memory is full: a sentence, and nothing that is kept."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from planned_models import GIB, config, described, machine

from ktops_engine import LLM, loader
from ktops_engine.config import EngineConfig
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError
from ktops_engine.gpu_memory import load_within
from ktops_engine.gpu_runner import GpuRunner
from ktops_engine.kv_cache import LatentCache
from ktops_engine.loader import LoadedModel
from ktops_engine.models import hybrid
from ktops_engine.plan import place
from ktops_engine.types import Batch, BatchItem, Request, Sampled, SamplingParams

DEMO = EngineConfig(demo_path(), demo_path(), ctx_size=64)


def run_out(*args: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_what_was_asked_and_what_was_free_are_said(monkeypatch):
    monkeypatch.setattr("ktops_engine.gpu_memory.could_be_had", lambda gpu: 5 * GIB + GIB // 2)
    placement = place(config(), described(), machine(vram=(24 * GIB,)))
    with pytest.raises(KtopsError) as caught:
        load_within(placement, run_out)
    error = caught.value
    assert (error.code, error.exit_status) == ("gpu-out-of-memory", 4)
    assert error.message == (
        "the memory of the GPU ran out while the model was loaded: the plan takes "
        f"{placement.vram_bytes / GIB:.1f} GiB of it, and 5.5 GiB were free for this process"
    )
    assert "nvidia-smi" in error.hint
    assert "ktops serve --gpu-memory 4GiB" in error.hint


def test_of_several_gpus_the_full_one_is_named_with_its_bytes(monkeypatch):
    def run_out() -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.1 "
            "GiB of which 1.2 GiB is free."
        )

    monkeypatch.setattr("ktops_engine.gpu_memory.could_be_had", lambda gpu: (70 + gpu) * GIB)
    wish = config(gpu_memory_bytes=80 * GIB)
    placement = place(wish, described(), machine(vram=(80 * GIB, 79 * GIB)))
    with pytest.raises(KtopsError) as caught:
        load_within(placement, run_out)
    planned = placement.gpus[1].total_bytes
    assert caught.value.message == (
        "the memory of GPU 1 ran out while the model was loaded: the plan takes "
        f"{planned / GIB:.1f} GiB of it, and 71.0 GiB were free for this process"
    )
    assert f"--gpu-memory {9 * 71 // 10}GiB" in caught.value.hint


def test_tensors_of_a_load_that_failed_are_gone_before_it_is_told():
    kept = []

    def load() -> None:
        tensor = torch.zeros(3)
        kept.append(weakref.ref(tensor))
        run_out(tensor)

    with pytest.raises(KtopsError):
        load_within(place(config(), described(), machine(vram=(24 * GIB,))), load)
    assert kept[0]() is None


def test_a_load_that_the_gpu_has_no_memory_for_gives_everything_back(native_build, monkeypatch):
    with_gpu = machine(4 * GIB, num_cores=2, vram=(8 * GIB,))
    monkeypatch.setattr(loader, "engine_machine", lambda: with_gpu)
    monkeypatch.setattr(hybrid, "load_gpu_weights", run_out)
    before = num_threads()
    with pytest.raises(KtopsError) as caught:
        LLM.load(DEMO)
    assert caught.value.code == "gpu-out-of-memory"
    assert num_threads() == before


def test_a_cache_that_the_gpu_has_no_memory_for_ends_the_engine(native_build, monkeypatch):
    monkeypatch.setattr(LoadedModel, "new_cache", run_out)
    before = num_threads()
    with pytest.raises(KtopsError) as caught:
        LLM.load(DEMO)
    assert caught.value.code == "gpu-out-of-memory"
    gc.collect()
    assert num_threads() == before


class FullModel:
    """Its first prompt finds no memory, the others do."""

    hidden_size = 4
    device = torch.device("cpu")
    tail = None

    def __init__(self) -> None:
        self.did: list[str] = []

    def embed(self, token_ids: list[int], out: torch.Tensor) -> None:
        out.zero_()

    def forward(self, step: object, cache: object, rows: list[int]) -> torch.Tensor:
        self.did.append("forward")
        return torch.zeros(len(rows), 8) if len(self.did) > 1 else run_out()

    def recover(self) -> None:
        self.did.append("recover")


@pytest.fixture
def runner():
    cache = LatentCache(1, 4, 64, 8, torch.float32, torch.device("cpu"))
    return GpuRunner(FullModel(), cache, lambda logits, requests: [Sampled(7) for _ in requests])


def prompt_step() -> Batch:
    request = Request("r", [3, 4, 5], SamplingParams(), block_table=[0])
    return Batch((BatchItem(request, 0, 3, samples=True),))


def test_a_step_without_memory_fails_its_requests_and_the_next_one_works(runner):
    (lost,) = runner.run(prompt_step())
    assert lost.token_id is None
    assert lost.error.startswith("The memory of the GPU ran out, with ")
    assert runner.run(prompt_step()) == [Sampled(7)]
    assert runner._model.did == ["forward", "recover", "forward"]


def test_logits_without_memory_are_refused_with_the_reason(runner):
    with pytest.raises(KtopsError) as caught:
        runner.logits(prompt_step())
    assert caught.value.code == "gpu-out-of-memory"
