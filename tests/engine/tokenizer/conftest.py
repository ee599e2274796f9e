"""The tokenizers of a tiny model and of the demo, and ways to spoil them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, open_gguf
from ktops_engine.gguf.values import Metadata
from ktops_engine.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tiny_gguf.TinyModel:
    return tiny_gguf.write_tiny_gguf(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def gguf(tiny: tiny_gguf.TinyModel) -> GgufModel:
    return open_gguf(tiny.path)


@pytest.fixture(scope="module")
def rebuilt(gguf: GgufModel) -> Tokenizer:
    return load_tokenizer(gguf, None)


@pytest.fixture(scope="module")
def from_json(gguf: GgufModel, tiny: tiny_gguf.TinyModel) -> Tokenizer:
    return load_tokenizer(gguf, tiny.config_folder)


@pytest.fixture(scope="module")
def demo() -> tuple[Tokenizer, Tokenizer]:
    """The demo model's tokenizer from its GGUF, and from its tokenizer.json."""
    model = open_gguf(demo_path())
    return load_tokenizer(model, None), load_tokenizer(model, demo_path())


def with_metadata(gguf: GgufModel, **changes: Any) -> GgufModel:
    """The same model with other `tokenizer.ggml.*` values; None removes one."""
    values = dict(gguf.metadata)
    values |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    kept = {key: value for key, value in values.items() if value is not None}
    return replace(gguf, metadata=Metadata(kept))


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values), encoding="utf-8")


def failure(gguf: GgufModel, folder: Path | None = None) -> KtopsError:
    with pytest.raises(KtopsError) as caught:
        load_tokenizer(gguf, folder)
    assert caught.value.hint
    return caught.value
