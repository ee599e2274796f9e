"""Shapes of deepseek2 models, small ones for tests and the published ones, and their tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

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

R1 = Shape(
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
PUBLISHED_V2 = replace(
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
PUBLISHED_V2_LITE = replace(
    PUBLISHED_V2,
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
