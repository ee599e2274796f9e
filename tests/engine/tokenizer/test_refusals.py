"""Tokenizers that are broken or of another model: one message each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizer

from ktops_engine.demo import demo_path
from ktops_engine.gguf import GgufModel
from ktops_engine.tokenizer import Tokenizer, load_tokenizer

from .conftest import edit_json, failure, with_metadata


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"model": None}, "tokenizer-not-found", "no tokenizer"),
        ({"model": "llama"}, "unsupported-tokenizer", "'llama'"),
        ({"pre": "kimi-k2"}, "unsupported-tokenizer", "'kimi-k2'"),
        ({"pre": None}, "unsupported-tokenizer", "None"),
        ({"tokens": None}, "tokenizer-invalid", "tokens"),
        ({"tokens": "abc"}, "tokenizer-invalid", "tokens"),
        ({"tokens": ["a", "a"], "token_type": None}, "tokenizer-invalid", "twice"),
        ({"token_type": np.array([1])}, "tokenizer-invalid", "one number per token"),
        ({"merges": None}, "tokenizer-invalid", "merges"),
        ({"merges": ["ab"]}, "tokenizer-invalid", "'ab' is not two tokens"),
        (
            {"tokens": ["a", "zq"], "token_type": None, "merges": ["z q"]},
            "tokenizer-invalid",
            "do not fit",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_rebuilt_is_one_message(
    gguf: GgufModel, changes: dict[str, Any], code: str, expected: str
) -> None:
    error = failure(with_metadata(gguf, **changes))
    assert error.code == code
    assert expected in error.message
    assert "--model-path" in error.hint


def test_a_merge_into_a_token_that_does_not_exist_is_ignored(
    gguf: GgufModel, rebuilt: Tokenizer
) -> None:
    merges = [*gguf.metadata["tokenizer.ggml.merges"], "zz qq"]
    tokenizer = load_tokenizer(with_metadata(gguf, merges=merges), None)
    text = "the quick brown fox 你好 123"
    assert tokenizer.encode(text) == rebuilt.encode(text)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0"}', "<html>"])
def test_a_broken_tokenizer_json_is_one_message(
    gguf: GgufModel, tmp_path: Path, content: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    error = failure(gguf, tmp_path)
    assert error.code in {"tokenizer-invalid", "config-invalid"}
    assert str(tmp_path / "tokenizer.json") in error.message


def test_a_tokenizer_json_that_would_be_renumbered_is_refused(
    gguf: GgufModel, tmp_path: Path
) -> None:
    tiny_tokenizer.write_tokenizer_files(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    values["added_tokens"][-1]["id"] += 7
    edit_json(tmp_path / "tokenizer.json", added_tokens=values["added_tokens"])
    error = failure(gguf, tmp_path)
    assert error.code == "tokenizer-invalid"
    assert "cannot have the id" in error.message


def test_a_tokenizer_that_is_not_byte_level_is_refused(gguf: GgufModel, tmp_path: Path) -> None:
    tiny_tokenizer.write_tokenizer_files(tmp_path)
    edit_json(tmp_path / "tokenizer.json", decoder=None)
    assert failure(gguf, tmp_path).code == "unsupported-tokenizer"


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_of_another_model(
    gguf: GgufModel,
) -> None:
    error = failure(gguf, demo_path())
    assert error.code == "tokenizer-mismatch"
    assert "4096 tokens" in error.message
    assert "384" in error.message


@pytest.mark.parametrize(
    "changes", [{"bos_token": "<s>"}, {"eos_token": {"content": 5}}, {"chat_template": {"a": 1}}]
)
def test_a_tokenizer_config_that_names_what_is_not_there_is_refused(
    gguf: GgufModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    tiny_tokenizer.write_tokenizer_files(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", **changes)
    error = failure(gguf, tmp_path)
    assert error.code == "tokenizer-invalid"
    assert next(iter(changes)) in error.message
