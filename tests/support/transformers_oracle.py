"""The reference for whole models: transformers in float32 on the same dequantised weights."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from ktops_engine.gguf import GgufModel, dequantize
from ktops_engine.model_config import ModelConfig


class Oracle:
    """transformers in float32 with the dequantised weights of a GGUF.

    `margin` is the smallest relative distance, since it was last set to infinity, by which any
    choice was made: an expert against the first one left out, a group likewise, a greedy token
    against the next. Where it is no larger than rounding errors, another order of summation may
    choose otherwise, and what follows says nothing about correctness.
    """

    def __init__(self, gguf: GgufModel, config: ModelConfig) -> None:
        is_v3 = config.topk_method == "noaux_tc"
        model_class = DeepseekV3ForCausalLM if is_v3 else DeepseekV2ForCausalLM
        self.config = config
        self.margin = float("inf")
        self._model = model_class(_config(config, is_v3)).eval()
        state = _state(dequantized(gguf), config)
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        assert not unexpected
        assert not [name for name in missing if "inv_freq" not in name]
        for name, module in self._model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_hook(self._watch_router)

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """[len(token_ids), vocab_size] float32"""
        with torch.inference_mode():
            return self._model(torch.tensor([token_ids])).logits[0]

    def greedy(self, token_ids: list[int], num_tokens: int, min_margin: float) -> list[int] | None:
        """The likeliest `num_tokens` tokens that follow; end-of-sequence does not end them.

        None as soon as a choice falls below `min_margin`.
        """
        with torch.inference_mode():
            ids, cache, output = torch.tensor([token_ids]), None, []
            for _ in range(num_tokens):
                step = self._model(ids, past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                (best, second), (token_id, _) = step.logits[0, -1].topk(2)
                self._note(best - second, best.abs() + second.abs())
                if self.margin < min_margin:
                    return None
                ids = token_id.view(1, 1)
                output.append(int(token_id))
        return output

    def _watch_router(self, router: torch.nn.Module, _: object, output: tuple) -> None:
        config = self.config
        scores = output[0].sigmoid() if config.scoring_func == "sigmoid" else output[0].softmax(-1)
        choice = scores + getattr(router, "e_score_correction_bias", 0.0)
        if config.topk_method != "greedy" and config.n_group > config.topk_group:
            groups = choice.view(len(choice), config.n_group, -1)
            best = groups.topk(2 if config.topk_method == "noaux_tc" else 1).values.sum(-1)
            self._note_choice(best, config.topk_group)
            kept = torch.zeros_like(best).scatter(1, best.topk(config.topk_group).indices, 1)
            choice = groups.masked_fill(kept[..., None] == 0, float("-inf")).flatten(1)
        self._note_choice(choice, config.num_experts_per_tok)

    def _note_choice(self, values: torch.Tensor, count: int) -> None:
        last, first_out = values.topk(count + 1).values[:, -2:].unbind(-1)
        self._note(last - first_out, last.abs())

    def _note(self, difference: torch.Tensor, scale: torch.Tensor) -> None:
        self.margin = min(self.margin, float((difference / scale).min()))


def dequantized(gguf: GgufModel) -> dict[str, torch.Tensor]:
    """Every tensor of the file in float32, by its GGUF name."""
    return {
        name: torch.from_numpy(
            np.array(dequantize(info.type, gguf.read(name), info.shape), dtype=np.float32)
        )
        for name, info in gguf.tensors.items()
    }


def _config(config: ModelConfig, is_v3: bool) -> DeepseekV2Config | DeepseekV3Config:
    rope: dict[str, object] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if (yarn := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
        "num_hidden_layers", "num_attention_heads", "n_shared_experts", "n_routed_experts",
        "num_experts_per_tok", "first_k_dense_replace", "n_group", "topk_group",
        "norm_topk_prob", "routed_scaling_factor", "q_lora_rank", "kv_lora_rank",
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rms_norm_eps",
        "max_position_embeddings",
    )  # fmt: skip
    values = {name: getattr(config, name) for name in names}
    values |= {"rope_parameters": rope, "tie_word_embeddings": False}
    values["num_key_value_heads"] = config.num_attention_heads
    values["attn_implementation"] = "eager"
    if is_v3:
        return DeepseekV3Config(**values)
    return DeepseekV2Config(**values, topk_method=config.topk_method)


def _state(tensors: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
        "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"]),
    }
    for i in range(config.num_hidden_layers):
        prefix = f"blk.{i}."
        block = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        layer = _attention_state(block, config) | _feed_forward_state(block)
        state |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return state


def _attention_state(
    block: dict[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
        "attn_output": "self_attn.o_proj",
    }
    state = {
        f"{theirs}.weight": block[f"{ours}.weight"]
        for ours, theirs in names.items()
        if f"{ours}.weight" in block
    }
    if "attn_k_b.weight" in block:
        key_up = block["attn_k_b.weight"].transpose(1, 2)
        both = torch.cat((key_up, block["attn_v_b.weight"]), dim=1)
        state["self_attn.kv_b_proj.weight"] = both.reshape(-1, config.kv_lora_rank)
    return state


def _feed_forward_state(block: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = ("gate", "up", "down")
    if "ffn_gate_inp.weight" not in block:
        return {f"mlp.{part}_proj.weight": block[f"ffn_{part}.weight"] for part in parts}
    state = {
        "mlp.gate.weight": block["ffn_gate_inp.weight"],
        "mlp.experts.gate_up_proj": torch.cat(
            (block["ffn_gate_exps.weight"], block["ffn_up_exps.weight"]), dim=1
        ),
        "mlp.experts.down_proj": block["ffn_down_exps.weight"],
    }
    for part in parts:
        state[f"mlp.shared_experts.{part}_proj.weight"] = block[f"ffn_{part}_shexp.weight"]
    if "exp_probs_b.bias" in block:
        state["mlp.gate.e_score_correction_bias"] = block["exp_probs_b.bias"]
    return state
