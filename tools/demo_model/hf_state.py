"""The model's tensors under Hugging Face names, for comparison with `transformers`."""

import torch
from torch import Tensor

from demo_model.shape import Shape

ATTENTION = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
}
FEED_FORWARD = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}


def hf_state_dict(state: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Rename and regroup; `kv_b_proj` is put together again from its two halves."""
    out = {
        "model.embed_tokens.weight": state["token_embd.weight"],
        "model.norm.weight": state["output_norm.weight"],
        "lm_head.weight": state["output.weight"],
    }
    for i in range(shape.num_hidden_layers):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        for name, hf_name in ATTENTION.items():
            out[f"{theirs}{hf_name}.weight"] = state[f"{ours}{name}.weight"]
        k = state[f"{ours}attn_k_b.weight"].transpose(1, 2)
        kv_b = torch.cat([k, state[f"{ours}attn_v_b.weight"]], 1).flatten(0, 1)
        out[f"{theirs}self_attn.kv_b_proj.weight"] = kv_b
        for name, hf_name in FEED_FORWARD.items():
            if shape.is_dense(i):
                out[f"{theirs}mlp.{hf_name}.weight"] = state[f"{ours}{name}.weight"]
                continue
            shared = state[f"{ours}{name}_shexp.weight"]
            out[f"{theirs}mlp.shared_experts.{hf_name}.weight"] = shared
            for e, expert in enumerate(state[f"{ours}{name}_exps.weight"]):
                out[f"{theirs}mlp.experts.{e}.{hf_name}.weight"] = expert
        if not shape.is_dense(i):
            out[f"{theirs}mlp.gate.weight"] = state[f"{ours}ffn_gate_inp.weight"]
            bias = state[f"{ours}exp_probs_b.bias"]
            out[f"{theirs}mlp.gate.e_score_correction_bias"] = bias
    return {name: tensor.contiguous() for name, tensor in out.items()}
