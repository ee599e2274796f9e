"""A hub with R1's repositories in small: nine shards, and a configuration beside weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Ran, runner
from fake_hub import FakeHub, running_hub
from raw_gguf import F32, STRING, U16, RawGguf, Tensor, scalar

NUM_SHARDS = 9
NUM_WEIGHTS = 16384
WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
CONFIG = "deepseek-ai/DeepSeek-R1"


def shard_name(number: int) -> str:
    return f"DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-{number:05d}-of-{NUM_SHARDS:05d}.gguf"


def shard(number: int, num_weights: int = NUM_WEIGHTS) -> bytes:
    pairs = [
        ("general.architecture", scalar(STRING, "deepseek2")),
        ("split.no", scalar(U16, number - 1)),
        ("split.count", scalar(U16, NUM_SHARDS)),
        ("split.tensors.count", scalar(U16, NUM_SHARDS)),
        ("noise", scalar(F32, number / 7)),
    ]
    data = bytes((number * 31 + index * 7) % 251 for index in range(251)) * (
        4 * num_weights // 251 + 1
    )
    tensor = Tensor(f"blk.{number}.weight", (num_weights,))
    return RawGguf(pairs, [tensor], data[: 4 * num_weights]).encode()


@pytest.fixture(scope="session")
def shards() -> dict[str, bytes]:
    return {shard_name(number): shard(number) for number in range(1, NUM_SHARDS + 1)}


@pytest.fixture(scope="session")
def large_shard() -> bytes:
    """The third shard, as 40 MB: several times the 10 MiB that the client writes at once."""
    return shard(3, 10_000_000)


@pytest.fixture
def hub(shards: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as fake:
        fake.repos[WEIGHTS] = {
            **shards,
            "DeepSeek-R1-Q8_0/other.gguf": b"x" * 9000,
            "README.md": b"read me",
        }
        fake.repos[CONFIG] = {
            "config.json": json.dumps({"architectures": ["DeepseekV3ForCausalLM"]}).encode(),
            "tokenizer.json": b'{"pad": "' + b"t" * 5000 + b'"}',
            "modeling_deepseek.py": b"raise SystemExit",
            "model-00001-of-000163.safetensors": b"s" * 8000,
            "model.safetensors.index.json": b"{}",
            "figures/benchmark.json": b"{}",
        }
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("KTOPS_MODELS", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    return folder


@pytest.fixture
def ktops(
    models_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """`ktops("download", "r1-q4km")` runs that command line in this process."""
    monkeypatch.chdir(models_dir.parent)
    return runner(capsys)
