"""Small random deepseek2 GGUFs shaped like V2-Lite, V2 and V3, for tests.

    model = write_tiny_gguf(tmp_path, V3, types=Q4_K_M, num_shards=2)
    model.path, model.config, model.config_folder   # any shard, config.json as a dict, its folder
    dequantized_tensors(model.path)                 # {"blk.0.attn_norm.weight": float32 array, ...}

Weights have a spread of about 1/sqrt(columns), so activations stay of order one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from gguf.constants import (
    ExpertGatingFuncType,
    GGMLQuantizationType,
    RopeScalingType,
    TokenType,
)
from model_shapes import V3, KvForm, Shape, tensor_shapes
from random_weights import choose_type, random_tensor
from tiny_tokenizer import BOS, CHAT_TEMPLATE, EOS, make_vocabulary, write_tokenizer_files

from ktops_engine.gguf import QuantType, dequantize, open_gguf

# Type by the end of a tensor's name (without ".weight"); "" is the rest. Norms, router and bias
# are always F32, and rows that are no whole blocks fall back to Q8_0, then F16.
ALL_F32: Mapping[str, QuantType] = {"": QuantType.F32}
Q4_K_M: Mapping[str, QuantType] = {
    "": QuantType.Q4_K,
    "output": QuantType.Q6_K,
    "ffn_down": QuantType.Q6_K,
    "ffn_down_exps": QuantType.Q6_K,
    "attn_v_b": QuantType.Q8_0,
}


def uniform(kind: QuantType) -> Mapping[str, QuantType]:
    """The same type for every matrix."""
    return {"": kind}


@dataclass(frozen=True)
class TinyModel:
    """What was written: `path` is the first shard, `config_folder` holds config.json,
    generation_config.json, tokenizer.json and tokenizer_config.json."""

    shape: Shape
    path: Path
    paths: tuple[Path, ...]
    config: dict[str, object]
    config_folder: Path


def write_tiny_gguf(
    folder: Path,
    shape: Shape = V3,
    *,
    types: Mapping[str, QuantType] = Q4_K_M,
    num_shards: int = 1,
    kv_form: KvForm = "new",
    early_2025: bool = False,
    tied: bool = False,
    with_mtp: bool = False,
    seed: int = 0,
    name: str = "tiny",
) -> TinyModel:
    """Write a random model into `folder` (made if need be) and its config files beside it.

    `kv_form` chooses attn_k_b + attn_v_b ("new") or attn_kv_b ("old"). `early_2025` leaves out the
    group keys, the *_mla lengths and the gating function of V2, as converters did then; it implies
    the old form. `tied` leaves out output.weight; `with_mtp` adds a nextn tensor after the last
    block. The same seed gives the same weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if early_2025:
        kv_form = "old"
    shapes = tensor_shapes(shape, kv_form, tied=tied)
    if with_mtp:
        shapes[f"blk.{shape.num_hidden_layers}.nextn.eh_proj.weight"] = (
            shape.hidden_size,
            2 * shape.hidden_size,
        )
    per_shard = -(-len(shapes) // num_shards) if num_shards > 1 else 0
    writer = GGUFWriter(folder / f"{name}.gguf", "deepseek2", split_max_tensors=per_shard)
    add_metadata(writer, shape, kv_form, early_2025, with_mtp, name)
    _add_tokenizer(writer, shape.vocab_size)
    rng = np.random.default_rng(seed)
    for tensor_name, tensor_shape in shapes.items():
        kind = choose_type(types, tensor_name, tensor_shape[-1])
        data = random_tensor(rng, tensor_name, tensor_shape, kind)
        writer.add_tensor(tensor_name, data, raw_dtype=GGMLQuantizationType(int(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = tuple(sorted(folder.glob(f"{name}*.gguf")))
    config = shape.config() | {"tie_word_embeddings": tied}
    config_folder = write_config_folder(folder / f"{name}-config", config, shape.vocab_size)
    return TinyModel(shape, paths[0], paths, config, config_folder)


def write_config_folder(folder: Path, config: Mapping[str, object], vocab_size: int = 384) -> Path:
    """Write config.json, generation_config.json and the tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "temperature": 0.6, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    write_tokenizer_files(folder, vocab_size)
    return folder


def dequantized_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a model as float32, by GGUF name, in row-major shape."""
    model = open_gguf(path)
    return {
        info.name: dequantize(info.type, model.read(info.name), info.shape)
        for info in model.tensors.values()
    }


def add_metadata(
    writer: GGUFWriter,
    shape: Shape,
    kv_form: KvForm,
    early_2025: bool,
    with_mtp: bool,
    name: str,
) -> None:
    """Add every `deepseek2.*` key a converter of that time writes."""
    writer.add_name(name)
    writer.add_block_count(shape.num_hidden_layers + with_mtp)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_leading_dense_block_count(shape.first_k_dense_replace)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(1 if kv_form == "new" else shape.num_attention_heads)
    if shape.q_lora_rank is not None:
        writer.add_q_lora_rank(shape.q_lora_rank)
    writer.add_kv_lora_rank(shape.kv_lora_rank)
    if early_2025 or kv_form == "old":
        writer.add_key_length(shape.qk_head_dim)
        writer.add_value_length(shape.v_head_dim)
    else:
        writer.add_key_length(shape.kv_lora_rank + shape.qk_rope_head_dim)
        writer.add_value_length(shape.kv_lora_rank)
        writer.add_key_length_mla(shape.qk_head_dim)
        writer.add_value_length_mla(shape.v_head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(shape.qk_rope_head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(128)
    writer.add_rope_scaling_yarn_log_mul(0.1 * shape.mscale_all_dim)
    _add_expert_metadata(writer, shape, early_2025)


def _add_expert_metadata(writer: GGUFWriter, shape: Shape, early_2025: bool) -> None:
    writer.add_expert_count(shape.n_routed_experts)
    writer.add_expert_used_count(shape.num_experts_per_tok)
    writer.add_expert_shared_count(shape.n_shared_experts)
    writer.add_expert_feed_forward_length(shape.moe_intermediate_size)
    writer.add_expert_weights_scale(shape.routed_scaling_factor)
    if shape.scoring_func == "sigmoid":
        writer.add_expert_weights_norm(shape.norm_topk_prob)
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    elif not early_2025:
        writer.add_expert_gating_func(ExpertGatingFuncType.SOFTMAX)
    if not early_2025 and shape.n_group > 1:
        writer.add_expert_group_count(shape.n_group)
        writer.add_expert_group_used_count(shape.topk_group)


def _add_tokenizer(writer: GGUFWriter, vocab_size: int) -> None:
    vocabulary = make_vocabulary(vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([TokenType(kind) for kind in vocabulary.types])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.id_of(BOS))
    writer.add_eos_token_id(vocabulary.id_of(EOS))
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
