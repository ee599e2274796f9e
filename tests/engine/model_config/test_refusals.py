"""Configurations that cannot be served: refusals that name the field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_shapes import R1, V3

from ktops_engine.gguf import GgufModel

from .conftest import config_folder, failure, in_memory


@pytest.mark.parametrize("architecture", ["llama", "qwen2moe", "deepseek32"])
def test_another_architecture_is_named_with_what_is_supported(
    tmp_path: Path, architecture: str
) -> None:
    gguf = replace(in_memory(R1, tmp_path), architecture=architecture, name="Some Model")
    error = failure(gguf)
    assert error.code == "unsupported-architecture"
    assert f"is a {architecture} model (Some Model)" in error.message
    assert "DeepSeek-V2" in error.message


def test_config_json_of_another_architecture_is_named(tmp_path: Path, tiny: GgufModel) -> None:
    folder = config_folder(tmp_path, V3, model_type="llama", architectures=["LlamaForCausalLM"])
    error = failure(tiny, folder)
    assert error.code == "unsupported-architecture"
    assert "LlamaForCausalLM" in error.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2"),
        ({"index_topk": 2048}, "index_topk"),
        ({"rope_interleave": False}, "not interleaved"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling of type 'linear'"),
        ({"scoring_func": "softmax"}, "'noaux_tc' on 'softmax'"),
        ({"topk_method": "sinkhorn"}, "'sinkhorn'"),
    ],
)
def test_unsupported_features_are_named(
    tmp_path: Path, tiny: GgufModel, changes: dict[str, Any], expected: str
) -> None:
    error = failure(tiny, config_folder(tmp_path, V3, **changes))
    assert error.code == "unsupported-model-feature"
    assert expected in error.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": "256"}, "hidden_size is '256'"),
        ({"hidden_size": 256.5}, "hidden_size is 256.5"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_hidden_layers": -4}, "num_hidden_layers = -4"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"q_lora_rank": 0}, "q_lora_rank = 0"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim = 15"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok = 17"),
        ({"num_experts_per_tok": 9}, "at most the 8 experts a token can reach"),
        ({"n_group": 3}, "n_group = 3"),
        ({"n_group": 16}, "n_group = 16"),
        ({"topk_group": 5}, "topk_group = 5"),
        ({"first_k_dense_replace": 5}, "first_k_dense_replace = 5"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"routed_scaling_factor": -1}, "routed_scaling_factor"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ({"topk_method": 3}, "topk_method is 3"),
        ({"eos_token_id": [384]}, "token id = 384"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"bos_token_id": -1}, "token id = -1"),
        ({"rope_scaling": [1]}, "rope scaling is [1]"),
        ({"rope_scaling": {"type": "yarn"}}, "rope scaling's"),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 0.5,
                    "original_max_position_embeddings": 128,
                }
            },
            "factor = 0.5",
        ),
    ],
)
def test_impossible_values_are_named(
    tmp_path: Path, tiny: GgufModel, changes: dict[str, Any], expected: str
) -> None:
    error = failure(tiny, config_folder(tmp_path, V3, **changes))
    assert error.code == "config-invalid"
    assert expected in error.message


def test_config_json_of_another_model_is_refused_by_the_tensor_that_does_not_fit(
    tmp_path: Path, tiny: GgufModel
) -> None:
    error = failure(tiny, config_folder(tmp_path, replace(V3, hidden_size=512)))
    assert error.code == "config-mismatch"
    assert "token_embd.weight is 384 x 256" in error.message
    error = failure(tiny, config_folder(tmp_path, replace(V3, num_hidden_layers=3)))
    assert error.code == "config-mismatch"
    assert "more than 3 layers" in error.message
    error = failure(tiny, config_folder(tmp_path, replace(V3, num_hidden_layers=5)))
    assert error.code == "config-mismatch"
    assert "no tensor blk.4." in error.message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"a": "\udcff"}'])
def test_a_file_that_is_no_json_object_is_one_message(
    tmp_path: Path, tiny: GgufModel, content: str
) -> None:
    folder = config_folder(tmp_path, V3)
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    error = failure(tiny, folder)
    assert error.code == "config-invalid"
    assert str(folder / "config.json") in error.message


def test_a_folder_without_config_json_is_not_found(tmp_path: Path, tiny: GgufModel) -> None:
    assert failure(tiny, tmp_path).code == "config-not-found"
    assert failure(tiny, tmp_path / "nowhere").code == "config-not-found"


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        ({"embedding_length": None}, "gguf-metadata-invalid", "hidden_size"),
        ({"block_count": None}, "gguf-metadata-invalid", "num_hidden_layers"),
        ({"expert_count": "many"}, "gguf-metadata-invalid", "expert_count"),
        ({"rope__freq_base": "fast"}, "gguf-metadata-invalid", "rope.freq_base"),
        ({"expert_weights_norm": 1}, "gguf-metadata-invalid", "expert_weights_norm"),
        ({"rope__scaling__type": 3}, "gguf-metadata-invalid", "rope.scaling.type"),
        ({"rope__scaling__type": "linear"}, "unsupported-model-feature", "'linear'"),
        ({"expert_gating_func": 3}, "unsupported-model-feature", "gating function 3"),
        ({"expert_gating_func": 1}, "unsupported-model-feature", "softmax routing with"),
        ({"embedding_length": 4096}, "config-mismatch", "token_embd.weight"),
        ({"block_count": 2**32 - 1}, "config-invalid", "num_hidden_layers"),
        ({"attention__key_length": 64}, "config-invalid", "qk_nope_head_dim = 0"),
    ],
)
def test_bad_metadata_is_named_when_there_is_no_config_json(
    tmp_path: Path, change: dict[str, Any], code: str, expected: str
) -> None:
    error = failure(in_memory(R1, tmp_path, **change))
    assert error.code == code
    assert expected in error.message
