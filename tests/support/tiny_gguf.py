"""Small random deepseek2 GGUFs shaped like V2-Lite, V2 and V3, for tests.

    model = write_tiny_gguf(tmp_path, V3, types=Q4_K_M, num_shards=2)
    model.path, model.config, model.config_folder   # any shard, config.json as a dict, its folder
    dequantized_tensors(model.path)                 # {"blk.0.attn_norm.weight": float32 array, ...}

Weights have a spread of about 1/sqrt(columns), so activations stay of order one. K-quant blocks are
random bytes with scales that give that spread, since no quantiser is needed for a random model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFWriter
from gguf.constants import (
    ExpertGatingFuncType,
    GGMLQuantizationType,
    RopeScalingType,
    TokenType,
)
from gguf.quants import quantize
from tiny_tokenizer import BOS, CHAT_TEMPLATE, EOS, make_vocabulary, write_tokenizer_files

from ktops_engine.gguf import QuantType, dequantize, open_gguf

KvForm = Literal["new", "old"]


@dataclass(frozen=True)
class Shape:
    """The numbers of a model under Hugging Face's names; see `config()` for the rest."""

    model_type: str
    hidden_size: int = 256
    intermediate_size: int = 512
    moe_intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    n_shared_experts: int = 1
    n_routed_experts: int = 16
    num_experts_per_tok: int = 4
    first_k_dense_replace: int = 1
    n_group: int = 4
    topk_group: int = 2
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    q_lora_rank: int | None = 96
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    mscale_all_dim: float = 1.0
    vocab_size: int = 384
    max_position_embeddings: int = 4096

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def config(self) -> dict[str, object]:
        """The contents of config.json, in the style DeepSeek publishes it."""
        values = asdict(self)
        mscale = values.pop("mscale_all_dim")
        version = "V3" if self.model_type == "deepseek_v3" else "V2"
        return values | {
            "architectures": [f"Deepseek{version}ForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "hidden_act": "silu",
            "moe_layer_freq": 1,
            "num_key_value_heads": self.num_attention_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 128,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": mscale,
                "mscale_all_dim": mscale,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


V3 = Shape("deepseek_v3")
V2 = Shape(
    "deepseek_v2",
    n_shared_experts=2,
    topk_method="group_limited_greedy",
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=16.0,
    mscale_all_dim=0.707,
)
V2_LITE = replace(
    V2, topk_method="greedy", n_group=1, topk_group=1, q_lora_rank=None, routed_scaling_factor=1.0
)

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


def tensor_shapes(
    shape: Shape, kv_form: KvForm = "new", *, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and row-major shapes of all tensors, in file order."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocab_size, shape.hidden_size),
        "output_norm.weight": (shape.hidden_size,),
    }
    if not tied:
        shapes["output.weight"] = (shape.vocab_size, shape.hidden_size)
    for layer in range(shape.num_hidden_layers):
        block = _attention_shapes(shape, kv_form) | _ffn_shapes(
            shape, dense=layer < shape.first_k_dense_replace
        )
        shapes |= {f"blk.{layer}.{suffix}": dims for suffix, dims in block.items()}
    return shapes


def _attention_shapes(shape: Shape, kv_form: KvForm) -> dict[str, tuple[int, ...]]:
    heads, hidden, latent = shape.num_attention_heads, shape.hidden_size, shape.kv_lora_rank
    shapes: dict[str, tuple[int, ...]] = {"attn_norm.weight": (hidden,)}
    if shape.q_lora_rank is None:
        shapes["attn_q.weight"] = (heads * shape.qk_head_dim, hidden)
    else:
        shapes["attn_q_a.weight"] = (shape.q_lora_rank, hidden)
        shapes["attn_q_a_norm.weight"] = (shape.q_lora_rank,)
        shapes["attn_q_b.weight"] = (heads * shape.qk_head_dim, shape.q_lora_rank)
    shapes["attn_kv_a_mqa.weight"] = (latent + shape.qk_rope_head_dim, hidden)
    shapes["attn_kv_a_norm.weight"] = (latent,)
    if kv_form == "old":
        rows = heads * (shape.qk_nope_head_dim + shape.v_head_dim)
        shapes["attn_kv_b.weight"] = (rows, latent)
    else:
        shapes["attn_k_b.weight"] = (heads, latent, shape.qk_nope_head_dim)
        shapes["attn_v_b.weight"] = (heads, shape.v_head_dim, latent)
    shapes["attn_output.weight"] = (hidden, heads * shape.v_head_dim)
    return shapes


def _ffn_shapes(shape: Shape, *, dense: bool) -> dict[str, tuple[int, ...]]:
    hidden, experts = shape.hidden_size, shape.n_routed_experts
    shapes: dict[str, tuple[int, ...]] = {"ffn_norm.weight": (hidden,)}
    if dense:
        inner = shape.intermediate_size
        return shapes | {
            "ffn_gate.weight": (inner, hidden),
            "ffn_up.weight": (inner, hidden),
            "ffn_down.weight": (hidden, inner),
        }
    inner = shape.moe_intermediate_size
    shared = inner * shape.n_shared_experts
    shapes["ffn_gate_inp.weight"] = (experts, hidden)
    if shape.scoring_func == "sigmoid":
        shapes["exp_probs_b.bias"] = (experts,)
    return shapes | {
        "ffn_gate_exps.weight": (experts, inner, hidden),
        "ffn_up_exps.weight": (experts, inner, hidden),
        "ffn_down_exps.weight": (experts, hidden, inner),
        "ffn_gate_shexp.weight": (shared, hidden),
        "ffn_up_shexp.weight": (shared, hidden),
        "ffn_down_shexp.weight": (hidden, shared),
    }


def choose_type(types: Mapping[str, QuantType], name: str, columns: int) -> QuantType:
    """The type of a tensor under `types`, with the fallbacks a quantiser makes."""
    if "norm" in name or name.endswith(("ffn_gate_inp.weight", "exp_probs_b.bias")):
        return QuantType.F32
    kind = types.get(name.removesuffix(".weight").split(".")[-1], types[""])
    for candidate in (kind, QuantType.Q8_0, QuantType.F16):
        if columns % candidate.block_size == 0:
            return candidate
    raise AssertionError("F16 has blocks of one")


def random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], kind: QuantType
) -> np.ndarray:
    """Random weights in `kind`'s layout, as GGUFWriter wants them (uint8 rows unless F32/F16)."""
    if name.endswith("norm.weight"):
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith("exp_probs_b.bias"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    columns = shape[-1]
    # Embeddings are large beside what the layers add, as in trained models: a rounding error then
    # stays far smaller than the distance between two experts' scores, and routing is stable.
    spread = 4.0 if name == "token_embd.weight" else columns**-0.5
    if kind in (QuantType.Q4_K, QuantType.Q5_K, QuantType.Q6_K):
        blocks = random_blocks(rng, kind, int(np.prod(shape)) // kind.block_size, spread)
        return blocks.reshape(*shape[:-1], -1)
    weights = (spread * rng.standard_normal(shape)).astype(np.float32)
    rows = quantize(weights.reshape(1, -1), GGMLQuantizationType(int(kind)))
    return rows.reshape(*shape[:-1], -1)


def random_blocks(
    rng: np.random.Generator, kind: QuantType, num_blocks: int, spread: float
) -> np.ndarray:
    """Valid K-quant blocks [num_blocks, block_bytes] whose weights have about the given spread.

    Q4_K and Q5_K: w = d*scale*q - dmin*min with 6-bit scales and mins; taking min = scale and
    dmin = d * mean(q) centres the weights. Q6_K: w = d*scale*(q-32) with int8 scales.
    """
    blocks = rng.integers(0, 256, (num_blocks, kind.block_bytes), dtype=np.uint8)
    jitter = rng.uniform(0.8, 1.25, num_blocks)
    if kind is QuantType.Q6_K:
        scales = rng.integers(16, 64, (num_blocks, 16)) * rng.choice([-1, 1], (num_blocks, 16))
        blocks[:, 192:208] = scales.astype(np.int8).view(np.uint8)
        d = spread * jitter / (18.5 * 42)
        blocks[:, 208:210] = d.astype(np.float16).reshape(-1, 1).view(np.uint8)
        return blocks
    levels = 16 if kind is QuantType.Q4_K else 32
    scales = rng.integers(16, 64, (num_blocks, 8), dtype=np.uint8)
    blocks[:, 4:16] = _pack_six_bit(scales, scales)
    d = spread * jitter / (levels / 12**0.5 * 42)
    blocks[:, 0:2] = d.astype(np.float16).reshape(-1, 1).view(np.uint8)
    blocks[:, 2:4] = (d * (levels - 1) / 2).astype(np.float16).reshape(-1, 1).view(np.uint8)
    return blocks


def _pack_six_bit(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Pack eight 6-bit scales and mins [n, 8] into K-quants' 12 bytes [n, 12].

    Bytes 0-3 and 4-7: scales and mins 0-3, the top two bits of each lent to number i+4;
    bytes 8-11: the low nibbles of scale and min 4-7.
    """
    packed = np.empty((len(scales), 12), dtype=np.uint8)
    packed[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    packed[:, 4:8] = mins[:, :4] | (mins[:, 4:] >> 4 << 6)
    packed[:, 8:12] = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return packed


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
