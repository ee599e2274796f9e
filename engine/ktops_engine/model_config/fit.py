"""Whether a configuration describes the tensors of a file: the check that catches a config.json
of one model beside the GGUF of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.text import Text, text

if TYPE_CHECKING:
    from ktops_engine.model_config.config import ModelConfig


def check_fits_tensors(config: ModelConfig, gguf: GgufModel, source: str) -> None:
    """Compare the shapes of a few tensors with what `config`, read from `source`, implies.

    Raises KtopsError config-mismatch for the first tensor that is missing or shaped otherwise.
    """
    for name, expected in _expected_shapes(config).items():
        tensor = gguf.tensors.get(name)
        if tensor is None:
            raise _mismatch(gguf, source, text("there is no tensor {name}", name=name))
        if tensor.shape != expected:
            raise _mismatch(
                gguf,
                source,
                text(
                    "{name} is {shape} and the configuration makes it {expected}",
                    name=name,
                    shape=_times(tensor.shape),
                    expected=_times(expected),
                ),
            )
    if f"blk.{config.num_hidden_layers}.attn_output.weight" in gguf.tensors and not any(
        name.startswith(f"blk.{config.num_hidden_layers}.nextn.") for name in gguf.tensors
    ):
        raise _mismatch(
            gguf,
            source,
            text(
                "it has more than {count} layers",
                count=config.num_hidden_layers,
            ),
        )


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the embedding, the first and last layer's attention and the first experts."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, hidden)}
    for layer in sorted({0, config.num_hidden_layers - 1}):
        block = f"blk.{layer}"
        latent = config.kv_lora_rank + config.qk_rope_head_dim
        shapes[f"{block}.attn_kv_a_mqa.weight"] = (latent, hidden)
        shapes[f"{block}.attn_output.weight"] = (hidden, heads * config.v_head_dim)
        queries = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            shapes[f"{block}.attn_q.weight"] = (queries, hidden)
        else:
            shapes[f"{block}.attn_q_b.weight"] = (queries, config.q_lora_rank)
    if config.first_k_dense_replace > 0:
        shapes["blk.0.ffn_down.weight"] = (hidden, config.intermediate_size)
    if config.first_k_dense_replace < config.num_hidden_layers:
        block = f"blk.{config.first_k_dense_replace}"
        experts, inner = config.n_routed_experts, config.moe_intermediate_size
        shapes[f"{block}.ffn_gate_inp.weight"] = (experts, hidden)
        shapes[f"{block}.ffn_down_exps.weight"] = (experts, hidden, inner)
        if config.n_shared_experts:
            shared = inner * config.n_shared_experts
            shapes[f"{block}.ffn_down_shexp.weight"] = (hidden, shared)
    return shapes


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _mismatch(gguf: GgufModel, source: str, why: Text) -> KtopsError:
    return KtopsError(
        "config-mismatch",
        text(
            "{source} does not describe {path}: {why}.",
            source=source,
            path=gguf.paths[0],
            why=why,
        ),
        text("Give --model-path the config folder of the same model, or leave it out"),
    )
