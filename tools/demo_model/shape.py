"""The one description of the demo model's shape, and its config.json."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Yarn:
    """YaRN scaling of the rotary embedding, with the names of config.json."""

    factor: float = 4.0
    original_max_position_embeddings: int = 1024
    beta_fast: int = 32
    beta_slow: int = 1
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    @property
    def attention_mscale(self) -> float:
        """The factor by which attention scores grow, squared in the softmax scale."""
        return 0.1 * self.mscale_all_dim * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class Shape:
    """A DeepSeek-V3 in miniature; Hugging Face names. Rows of all big matrices divide by 256."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 1024
    moe_intermediate_size: int = 256
    num_hidden_layers: int = 6
    first_k_dense_replace: int = 1
    num_attention_heads: int = 8
    q_lora_rank: int = 256
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 32
    v_head_dim: int = 64
    n_routed_experts: int = 32
    num_experts_per_tok: int = 4
    n_shared_experts: int = 1
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096
    yarn: Yarn = Yarn()

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_dense(self, layer: int) -> bool:
        return layer < self.first_k_dense_replace


def hf_config(shape: Shape) -> dict[str, Any]:
    """config.json of the model, as `transformers` reads it."""
    fields = asdict(shape)
    yarn = fields.pop("yarn")
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **fields,
        "num_key_value_heads": shape.num_attention_heads,
        "moe_layer_freq": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_scaling": {"type": "yarn", **yarn},
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "torch_dtype": "float32",
    }
