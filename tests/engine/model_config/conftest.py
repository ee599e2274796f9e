"""What a configuration is read from: a tiny model, one of any size without its data, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from model_shapes import Shape, tensor_shapes
from tiny_gguf import add_metadata, write_config_folder, write_tiny_gguf

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, TensorInfo, open_gguf
from ktops_engine.gguf.values import Metadata
from ktops_engine.model_config import resolve_model_config


def in_memory(shape: Shape, tmp_path: Path, **metadata: Any) -> GgufModel:
    """A model of any size without its data: the metadata an early-2025 converter writes for
    `shape`, changed by `metadata` (dots as double underscores, None removes)."""
    path = tmp_path / "metadata.gguf"
    writer = GGUFWriter(path, "deepseek2")
    add_metadata(writer, shape, "old", True, False, "in memory")
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    values = {key: field.value for key, field in writer.kv_data[0].items()}
    writer.close()
    values |= {f"deepseek2.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tensors = {
        name: TensorInfo(name, dims, QuantType.F32, 0, 0, 4)
        for name, dims in tensor_shapes(shape, "old").items()
    }
    kept = {key: value for key, value in values.items() if value is not None}
    return GgufModel((path,), Metadata(kept), tensors, 0, "deepseek2", "in memory")


def config_folder(folder: Path, shape: Shape, **changes: Any) -> Path:
    """A folder with config.json of `shape`; a change to `...` removes the key."""
    config = shape.config() | changes
    kept = {name: value for name, value in config.items() if value is not ...}
    return write_config_folder(folder / "config", kept)


def failure(gguf: GgufModel, folder: Path | None = None) -> KtopsError:
    with pytest.raises(KtopsError) as caught:
        resolve_model_config(gguf, folder)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def tiny(tmp_path: Path) -> GgufModel:
    return open_gguf(write_tiny_gguf(tmp_path / "tiny").path)
