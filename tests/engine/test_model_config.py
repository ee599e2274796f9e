"""The model's configuration: two sources, one result, and refusals that name the field."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, TensorInfo, open_gguf
from ktops_engine.gguf.values import Metadata
from ktops_engine.model_config import ModelConfig, YarnScaling, resolve_model_config
from ktops_engine.tokenizer import load_tokenizer

R1 = tiny_gguf.Shape(
    "deepseek_v3",
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    num_hidden_layers=61,
    num_attention_heads=128,
    n_routed_experts=256,
    num_experts_per_tok=8,
    first_k_dense_replace=3,
    n_group=8,
    topk_group=4,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    vocab_size=129_280,
    max_position_embeddings=163_840,
)
V2 = replace(
    R1,
    model_type="deepseek_v2",
    hidden_size=5120,
    intermediate_size=12288,
    moe_intermediate_size=1536,
    num_hidden_layers=60,
    n_shared_experts=2,
    n_routed_experts=160,
    num_experts_per_tok=6,
    first_k_dense_replace=1,
    topk_group=3,
    topk_method="group_limited_greedy",
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
    mscale_all_dim=0.707,
    vocab_size=102_400,
)
V2_LITE = replace(
    V2,
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_hidden_layers=27,
    num_attention_heads=16,
    n_routed_experts=64,
    n_group=1,
    topk_group=1,
    topk_method="greedy",
    routed_scaling_factor=1.0,
    q_lora_rank=None,
)
KIMI_K2 = replace(
    R1,
    model_type="kimi_k2",
    num_attention_heads=64,
    n_routed_experts=384,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=2.827,
    vocab_size=163_840,
)


def in_memory(shape: tiny_gguf.Shape, tmp_path: Path, **metadata: Any) -> GgufModel:
    """A model of any size without its data: the metadata an early-2025 converter writes for
    `shape`, changed by `metadata` (dots as double underscores, None removes)."""
    path = tmp_path / "metadata.gguf"
    writer = GGUFWriter(path, "deepseek2")
    tiny_gguf.add_metadata(writer, shape, "old", True, False, "in memory")
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    values = {key: field.value for key, field in writer.kv_data[0].items()}
    writer.close()
    values |= {f"deepseek2.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tensors = {
        name: TensorInfo(name, dims, QuantType.F32, 0, 0, 4)
        for name, dims in tiny_gguf.tensor_shapes(shape, "old").items()
    }
    kept = {key: value for key, value in values.items() if value is not None}
    return GgufModel((path,), Metadata(kept), tensors, 0, "deepseek2", "in memory")


def config_folder(folder: Path, shape: tiny_gguf.Shape, **changes: Any) -> Path:
    """A folder with config.json of `shape`; a change to `...` removes the key."""
    config = shape.config() | changes
    kept = {name: value for name, value in config.items() if value is not ...}
    return tiny_gguf.write_config_folder(folder / "config", kept)


def failure(gguf: GgufModel, folder: Path | None = None) -> KtopsError:
    with pytest.raises(KtopsError) as caught:
        resolve_model_config(gguf, folder)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def tiny(tmp_path: Path) -> GgufModel:
    return open_gguf(tiny_gguf.write_tiny_gguf(tmp_path / "tiny").path)


@pytest.mark.parametrize("shape", [R1, V2, V2_LITE], ids=["R1", "V2", "V2-Lite"])
def test_an_early_file_alone_gives_the_published_configuration(
    tmp_path: Path, shape: tiny_gguf.Shape
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
    config, notes = resolve_model_config(in_memory(V2_LITE, tmp_path), None)
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
    config, notes = resolve_model_config(in_memory(tiny_gguf.V2, tmp_path), None)
    assert config.topk_method == "greedy"
    assert notes == ["expert groups: the GGUF does not say; routing without them"]


@pytest.mark.parametrize("shape", [tiny_gguf.V3, tiny_gguf.V2, tiny_gguf.V2_LITE])
@pytest.mark.parametrize("kv_form", ["new", "old"])
def test_current_files_and_config_json_agree(
    tmp_path: Path, shape: tiny_gguf.Shape, kv_form: tiny_gguf.KvForm
) -> None:
    model = tiny_gguf.write_tiny_gguf(tmp_path, shape, kv_form=kv_form)
    gguf = open_gguf(model.path)
    alone, _ = resolve_model_config(gguf, None)
    beside, notes = resolve_model_config(gguf, model.config_folder)
    assert alone == beside
    assert notes == []


def test_config_json_wins_and_every_difference_is_noted(tmp_path: Path, tiny: GgufModel) -> None:
    folder = config_folder(
        tmp_path, tiny_gguf.V3, routed_scaling_factor=1.5, max_position_embeddings=8192
    )
    config, notes = resolve_model_config(tiny, folder)
    assert config.routed_scaling_factor == 1.5
    assert config.max_position_embeddings == 8192
    assert notes == [
        "max_position_embeddings: config.json has 8192, the GGUF has 4096; using config.json",
        "routed_scaling_factor: config.json has 1.5, the GGUF has 2.5; using config.json",
    ]


def test_the_rope_parameters_of_transformers_5_are_read(tmp_path: Path, tiny: GgufModel) -> None:
    scaling = dict(tiny_gguf.V3.config()["rope_scaling"])  # type: ignore[call-overload]
    parameters = {**scaling, "rope_type": scaling.pop("type"), "rope_theta": 50000.0}
    folder = config_folder(
        tmp_path, tiny_gguf.V3, rope_parameters=parameters, rope_scaling=..., rope_theta=...
    )
    config, _ = resolve_model_config(tiny, folder)
    assert config.rope_theta == 50000.0
    assert config.rope_scaling == YarnScaling(40.0, 128, 32.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, {}])
def test_no_rope_scaling_is_none(tmp_path: Path, tiny: GgufModel, scaling: object) -> None:
    folder = config_folder(tmp_path, tiny_gguf.V3, rope_scaling=scaling)
    assert resolve_model_config(tiny, folder)[0].rope_scaling is None


def test_transformers_5_leaves_v3s_routing_out_and_it_is_known(
    tmp_path: Path, tiny: GgufModel
) -> None:
    folder = config_folder(
        tmp_path, tiny_gguf.V3, scoring_func=..., topk_method=..., norm_topk_prob=...
    )
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
    folder = config_folder(tmp_path, tiny_gguf.V3, eos_token_id=config_eos)
    generation = json.dumps({"eos_token_id": generation_eos})
    (folder / "generation_config.json").write_text(generation)
    assert resolve_model_config(tiny, folder)[0].eos_token_ids == expected


def test_end_tokens_of_the_file_serve_when_the_folder_names_none(
    tmp_path: Path, tiny: GgufModel
) -> None:
    folder = config_folder(tmp_path, tiny_gguf.V3, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert resolve_model_config(tiny, folder)[0].eos_token_ids == (1,)


def test_an_end_of_turn_token_in_the_file_ends_too(tmp_path: Path) -> None:
    gguf = in_memory(R1, tmp_path)
    values = dict(gguf.metadata) | {"tokenizer.ggml.eot_token_id": 9}
    config, _ = resolve_model_config(replace(gguf, metadata=Metadata(values)), None)
    assert config.eos_token_ids == (1, 9)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_tied_when_the_file_has_no_output_matrix(tmp_path: Path, tied: bool) -> None:
    model = tiny_gguf.write_tiny_gguf(tmp_path, tied=tied)
    gguf = open_gguf(model.path)
    assert resolve_model_config(gguf, None)[0].tie_word_embeddings is tied
    assert resolve_model_config(gguf, model.config_folder)[0].tie_word_embeddings is tied


def test_prediction_blocks_at_the_end_are_skipped_and_said(tmp_path: Path) -> None:
    model = tiny_gguf.write_tiny_gguf(tmp_path, with_mtp=True)
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
    folder = config_folder(
        tmp_path, tiny_gguf.V3, model_type="llama", architectures=["LlamaForCausalLM"]
    )
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
    error = failure(tiny, config_folder(tmp_path, tiny_gguf.V3, **changes))
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
    error = failure(tiny, config_folder(tmp_path, tiny_gguf.V3, **changes))
    assert error.code == "config-invalid"
    assert expected in error.message


def test_config_json_of_another_model_is_refused_by_the_tensor_that_does_not_fit(
    tmp_path: Path, tiny: GgufModel
) -> None:
    error = failure(tiny, config_folder(tmp_path, replace(tiny_gguf.V3, hidden_size=512)))
    assert error.code == "config-mismatch"
    assert "token_embd.weight is 384 x 256" in error.message
    error = failure(tiny, config_folder(tmp_path, replace(tiny_gguf.V3, num_hidden_layers=3)))
    assert error.code == "config-mismatch"
    assert "more than 3 layers" in error.message
    error = failure(tiny, config_folder(tmp_path, replace(tiny_gguf.V3, num_hidden_layers=5)))
    assert error.code == "config-mismatch"
    assert "no tensor blk.4." in error.message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"a": "\udcff"}'])
def test_a_file_that_is_no_json_object_is_one_message(
    tmp_path: Path, tiny: GgufModel, content: str
) -> None:
    folder = config_folder(tmp_path, tiny_gguf.V3)
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


def test_keys_the_file_lacks_may_come_from_config_json(tmp_path: Path) -> None:
    gguf = in_memory(R1, tmp_path, embedding_length=None, block_count=None, expert_count=None)
    config, _ = resolve_model_config(gguf, config_folder(tmp_path, R1))
    assert config.hidden_size == 7168


VALUES = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.booleans()
    | st.text(max_size=4)
    | st.lists(st.text(max_size=3), max_size=3)
    | st.just(np.arange(3))
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_value_under_any_key_gives_a_model_or_one_error(
    tiny: GgufModel, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from([key for key in tiny.metadata if not key.startswith("split")]))
    changed = Metadata(dict(tiny.metadata) | {key: data.draw(VALUES)})
    error = None
    try:
        gguf = replace(tiny, metadata=changed)
        resolve_model_config(gguf, None)
        load_tokenizer(gguf, None)
    except KtopsError as caught:
        error = caught
    assert error is None or error.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_json_value_in_any_field_gives_a_configuration_or_one_error(
    tmp_path: Path, tiny: GgufModel, data: st.DataObject
) -> None:
    config = tiny_gguf.V3.config()
    name = data.draw(st.sampled_from([*config, "rope_parameters"]))
    draw: Callable[[], Any] = lambda: data.draw(JSON)  # noqa: E731 typed for the two uses below
    if name == "rope_scaling" and data.draw(st.booleans()):
        scaling = dict(config["rope_scaling"])  # type: ignore[call-overload]
        config[name] = scaling | {data.draw(st.sampled_from([*scaling])): draw()}
    else:
        config[name] = draw()
    folder = tmp_path / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    error = None
    try:
        resolved, _ = resolve_model_config(tiny, folder)
        assert isinstance(resolved, ModelConfig)
    except KtopsError as caught:
        error = caught
    assert error is None or error.hint
