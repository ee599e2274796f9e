"""The model's configuration: two sources, one result, and notes where they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from model_shapes import (
    KIMI_K2,
    PUBLISHED_V2,
    PUBLISHED_V2_LITE,
    R1,
    V2,
    V2_LITE,
    V3,
    KvForm,
    Shape,
)
from tiny_gguf import write_tiny_gguf

from ktops_engine.gguf import GgufModel, open_gguf
from ktops_engine.gguf.values import Metadata
from ktops_engine.model_config import YarnScaling, resolve_model_config

from .conftest import config_folder, in_memory


@pytest.mark.parametrize(
    "shape", [R1, PUBLISHED_V2, PUBLISHED_V2_LITE], ids=["R1", "V2", "V2-Lite"]
)
def test_an_early_file_alone_gives_the_published_configuration(
    tmp_path: Path, shape: Shape
) -> None:
    gguf = in_memory(shape, tmp_path)
    alone, _ = resolve_model_config(gguf, None)
    beside, notes = resolve_model_config(gguf, config_folder(tmp_path, shape))
    assert alone == replace(beside, rope_scaling=alone.rope_scaling)
    assert alone.rope_scaling is not None
    assert alone.rope_scaling.mscale_all_dim == shape.mscale_all_dim
    assert alone.rope_scaling.factor == 40
    assert notes == []


def test_r1_has_the_numbers_of_its_model_card(tmp_path: Path) -> None:
    config, notes = resolve_model_config(in_memory(R1, tmp_path), None)
    assert (config.n_group, config.topk_group) == (8, 4)
    assert (config.topk_method, config.scoring_func) == ("noaux_tc", "sigmoid")
    assert config.norm_topk_prob
    assert config.routed_scaling_factor == 2.5
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim) == (128, 64, 128)
    assert config.qk_head_dim == 192
    assert config.rms_norm_eps == 1e-6
    assert config.eos_token_ids == (1,)
    assert [config.is_dense_layer(layer) for layer in (0, 2, 3, 60)] == [True, True, False, False]
    assert len(notes) == 1
    assert "using 4 of 8" in notes[0]


def test_v2_lite_has_one_query_projection_and_no_groups(tmp_path: Path) -> None:
    config, notes = resolve_model_config(in_memory(PUBLISHED_V2_LITE, tmp_path), None)
    assert config.q_lora_rank is None
    assert (config.topk_method, config.n_group, config.topk_group) == ("greedy", 1, 1)
    assert notes == []


def test_kimi_k2_passes_as_a_v3_without_groups(tmp_path: Path) -> None:
    gguf = in_memory(KIMI_K2, tmp_path)
    alone, notes = resolve_model_config(gguf, None)
    beside, _ = resolve_model_config(gguf, config_folder(tmp_path, KIMI_K2))
    assert alone.n_routed_experts == beside.n_routed_experts == 384
    assert alone.topk_method == beside.topk_method == "noaux_tc"
    assert alone.n_group == beside.n_group == 1
    assert alone.routed_scaling_factor == 2.827
    assert notes == []


def test_unknown_shapes_without_group_keys_route_without_groups_and_say_so(
    tmp_path: Path,
) -> None:
    config, notes = resolve_model_config(in_memory(V2, tmp_path), None)
    assert config.topk_method == "greedy"
    assert notes == ["expert groups: the GGUF does not say; routing without them"]


@pytest.mark.parametrize("shape", [V3, V2, V2_LITE])
@pytest.mark.parametrize("kv_form", ["new", "old"])
def test_current_files_and_config_json_agree(tmp_path: Path, shape: Shape, kv_form: KvForm) -> None:
    model = write_tiny_gguf(tmp_path, shape, kv_form=kv_form)
    gguf = open_gguf(model.path)
    alone, _ = resolve_model_config(gguf, None)
    beside, notes = resolve_model_config(gguf, model.config_folder)
    assert alone == beside
    assert notes == []


def test_config_json_wins_and_every_difference_is_noted(tmp_path: Path, tiny: GgufModel) -> None:
    folder = config_folder(tmp_path, V3, routed_scaling_factor=1.5, max_position_embeddings=8192)
    config, notes = resolve_model_config(tiny, folder)
    assert config.routed_scaling_factor == 1.5
    assert config.max_position_embeddings == 8192
    assert notes == [
        "max_position_embeddings: config.json has 8192, the GGUF has 4096; using config.json",
        "routed_scaling_factor: config.json has 1.5, the GGUF has 2.5; using config.json",
    ]


def test_the_rope_parameters_of_transformers_5_are_read(tmp_path: Path, tiny: GgufModel) -> None:
    scaling = dict(V3.config()["rope_scaling"])  # type: ignore[call-overload]
    parameters = {**scaling, "rope_type": scaling.pop("type"), "rope_theta": 50000.0}
    folder = config_folder(
        tmp_path, V3, rope_parameters=parameters, rope_scaling=..., rope_theta=...
    )
    config, _ = resolve_model_config(tiny, folder)
    assert config.rope_theta == 50000.0
    assert config.rope_scaling == YarnScaling(40.0, 128, 32.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, {}])
def test_no_rope_scaling_is_none(tmp_path: Path, tiny: GgufModel, scaling: object) -> None:
    folder = config_folder(tmp_path, V3, rope_scaling=scaling)
    assert resolve_model_config(tiny, folder)[0].rope_scaling is None


def test_transformers_5_leaves_v3s_routing_out_and_it_is_known(
    tmp_path: Path, tiny: GgufModel
) -> None:
    folder = config_folder(tmp_path, V3, scoring_func=..., topk_method=..., norm_topk_prob=...)
    config, notes = resolve_model_config(tiny, folder)
    assert (config.topk_method, config.scoring_func) == ("noaux_tc", "sigmoid")
    assert config.norm_topk_prob
    assert notes == []


@pytest.mark.parametrize(
    ("config_eos", "generation_eos", "expected"),
    [(1, None, (1,)), ([1, 5], None, (1, 5)), (1, [3, 1], (1, 3)), (None, 7, (7,))],
)
def test_end_tokens_come_from_both_files(
    tmp_path: Path,
    tiny: GgufModel,
    config_eos: object,
    generation_eos: object,
    expected: tuple[int, ...],
) -> None:
    folder = config_folder(tmp_path, V3, eos_token_id=config_eos)
    generation = json.dumps({"eos_token_id": generation_eos})
    (folder / "generation_config.json").write_text(generation)
    assert resolve_model_config(tiny, folder)[0].eos_token_ids == expected


def test_end_tokens_of_the_file_serve_when_the_folder_names_none(
    tmp_path: Path, tiny: GgufModel
) -> None:
    folder = config_folder(tmp_path, V3, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert resolve_model_config(tiny, folder)[0].eos_token_ids == (1,)


def test_an_end_of_turn_token_in_the_file_ends_too(tmp_path: Path) -> None:
    gguf = in_memory(R1, tmp_path)
    values = dict(gguf.metadata) | {"tokenizer.ggml.eot_token_id": 9}
    config, _ = resolve_model_config(replace(gguf, metadata=Metadata(values)), None)
    assert config.eos_token_ids == (1, 9)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_tied_when_the_file_has_no_output_matrix(tmp_path: Path, tied: bool) -> None:
    model = write_tiny_gguf(tmp_path, tied=tied)
    gguf = open_gguf(model.path)
    assert resolve_model_config(gguf, None)[0].tie_word_embeddings is tied
    assert resolve_model_config(gguf, model.config_folder)[0].tie_word_embeddings is tied


def test_prediction_blocks_at_the_end_are_skipped_and_said(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path, with_mtp=True)
    config, notes = resolve_model_config(open_gguf(model.path), model.config_folder)
    assert config.num_hidden_layers == 4
    assert "skipping multi-token prediction block 4" in notes


def test_prediction_blocks_that_were_dropped_do_not_count_as_layers(tmp_path: Path) -> None:
    gguf = in_memory(R1, tmp_path, block_count=62, nextn_predict_layers=1)
    assert resolve_model_config(gguf, None)[0].num_hidden_layers == 61
    gguf = in_memory(R1, tmp_path, block_count=61, nextn_predict_layers=1)
    assert resolve_model_config(gguf, None)[0].num_hidden_layers == 61


def test_a_file_without_a_log_multiplier_scales_as_yarn_does_by_default(tmp_path: Path) -> None:
    gguf = in_memory(R1, tmp_path, rope__scaling__yarn_log_multiplier=None)
    scaling = resolve_model_config(gguf, None)[0].rope_scaling
    assert scaling == YarnScaling(40.0, 128, 32.0, 1.0, mscale=1.0, mscale_all_dim=0.0)


def test_keys_the_file_lacks_may_come_from_config_json(tmp_path: Path) -> None:
    gguf = in_memory(R1, tmp_path, embedding_length=None, block_count=None, expert_count=None)
    config, _ = resolve_model_config(gguf, config_folder(tmp_path, R1))
    assert config.hidden_size == 7168
