"""Read a model's configuration from GGUF metadata (architecture `deepseek2`)."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.model_config.rope import YarnScaling
from ktops_engine.text import Text, text

ARCHITECTURE = "deepseek2"
_MAX_PREDICTION_BLOCKS = 8
_NULLABLE = frozenset({"q_lora_rank", "rope_scaling", "bos_token_id"})
_GATING = MappingProxyType({1: "softmax", 2: "sigmoid"})
# (routed experts, layers) -> (n_group, topk_group), for files without the group keys:
# DeepSeek-V3/R1, V2, V2-Lite and Kimi-K2.
_KNOWN_GROUPS = MappingProxyType(
    {(256, 61): (8, 4), (160, 60): (8, 3), (64, 27): (1, 1), (384, 61): (1, 1)}
)

_INTS = MappingProxyType(
    {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "moe_intermediate_size": "expert_feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "n_routed_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "first_k_dense_replace": "leading_dense_block_count",
        "kv_lora_rank": "attention.kv_lora_rank",
        "qk_rope_head_dim": "rope.dimension_count",
        "max_position_embeddings": "context_length",
        "n_group": "expert_group_count",
        "topk_group": "expert_group_used_count",
    }
)


@dataclass(frozen=True)
class GgufConfig:
    """`ModelConfig` fields by name: what the file states, and what had to be inferred because it
    does not; `inferences` says how, `notes` is about the file itself."""

    stated: dict[str, Any]
    inferred: dict[str, Any]
    notes: list[Text]
    inferences: list[Text]


def read_gguf_config(gguf: GgufModel) -> GgufConfig:
    """Read the configuration from metadata.

    Raises KtopsError: unsupported-architecture, unsupported-model-feature, gguf-metadata-invalid.
    """
    if gguf.architecture != ARCHITECTURE:
        named = f" ({gguf.name})" if gguf.name else ""
        raise KtopsError(
            "unsupported-architecture",
            text(
                "{path} is a {architecture} model{named}; ktops runs DeepSeek-V2, V2-Lite, V3, "
                "R1 and Kimi-K2 (GGUF architecture {supported}).",
                path=gguf.paths[0],
                architecture=gguf.architecture,
                named=named,
                supported=ARCHITECTURE,
            ),
            "ktops models",
        )
    keys = _Keys(gguf)
    stated: dict[str, Any] = {name: keys.integer(key) for name, key in _INTS.items()}
    stated |= _attention(keys) | _routing(keys) | _tokens(keys)
    stated |= {
        "num_hidden_layers": _num_layers(keys),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocab_size(keys),
    }
    stated = {
        name: value for name, value in stated.items() if value is not None or name in _NULLABLE
    }
    inferred, inferences = _infer_routing(keys, stated)
    skipped = sorted({name.split(".")[1] for name in gguf.tensors if ".nextn." in name})
    notes = [text("skipping multi-token prediction block {block}", block=at) for at in skipped]
    return GgufConfig(stated, inferred, notes, inferences)


class _Keys:
    """Typed access to metadata; a key that is there with another type is an error."""

    def __init__(self, gguf: GgufModel) -> None:
        self.gguf = gguf

    def integer(self, key: str) -> int | None:
        value = self._get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._invalid(key, value, text("a whole number"))

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._invalid(key, value, text("a number"))
        # Stored as float32: 1e-6 comes back as 9.99999997e-07. The shortest decimal that
        # is the same float32 is what was written.
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def boolean(self, key: str) -> bool | None:
        value = self._get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._invalid(key, value, text("true or false"))

    def text(self, key: str) -> str | None:
        value = self._get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._invalid(key, value, text("a text"))

    def _get(self, key: str) -> object:
        full = key if key.startswith("tokenizer.") else f"{ARCHITECTURE}.{key}"
        return self.gguf.metadata.get(full)

    def _invalid(self, key: str, value: object, expected: Text) -> KtopsError:
        return KtopsError(
            "gguf-metadata-invalid",
            text(
                "{path} has {value!r} under {key}, which should be {expected}.",
                path=self.gguf.paths[0],
                value=value,
                key=key,
                expected=expected,
            ),
            text("Download the model again, from a publisher that converts with current tools"),
        )


def _attention(keys: _Keys) -> dict[str, Any]:
    """Head sizes: *_mla where converters of mid-2025 on write them, the plain lengths before."""
    rope = keys.integer("rope.dimension_count")
    key_length = keys.integer("attention.key_length_mla") or keys.integer("attention.key_length")
    value_length = keys.integer("attention.value_length_mla") or keys.integer(
        "attention.value_length"
    )
    return {
        "q_lora_rank": keys.integer("attention.q_lora_rank") or None,
        "qk_nope_head_dim": None if key_length is None or rope is None else key_length - rope,
        "v_head_dim": value_length,
    }


def _num_layers(keys: _Keys) -> int | None:
    """The number of layers, without multi-token prediction blocks, present or dropped."""
    num_layers = keys.integer("block_count")
    declared = keys.integer("nextn_predict_layers") or 0
    for _ in range(_MAX_PREDICTION_BLOCKS):
        last = f"blk.{(num_layers or 0) - 1}."
        is_extra = any(name.startswith(last + "nextn.") for name in keys.gguf.tensors)
        is_dropped = declared > 0 and last + "attn_output.weight" not in keys.gguf.tensors
        if num_layers is None or not (is_extra or is_dropped):
            break
        num_layers -= 1
    return num_layers


def _routing(keys: _Keys) -> dict[str, Any]:
    gating = keys.integer("expert_gating_func") or None
    if gating is not None and gating not in _GATING:
        raise _unsupported(keys.gguf, text("expert gating function {gating}", gating=gating))
    return {
        "scoring_func": None if gating is None else _GATING[gating],
        # Converters leave out a factor of 1 and a norm of false, or write 0 for the factor.
        "routed_scaling_factor": keys.number("expert_weights_scale") or 1.0,
        "norm_topk_prob": keys.boolean("expert_weights_norm") or False,
        "n_shared_experts": keys.integer("expert_shared_count") or 0,
    }


def _infer_routing(keys: _Keys, stated: dict[str, Any]) -> tuple[dict[str, Any], list[Text]]:
    """Scores, groups and method where the keys are missing, and a note on inferred groups."""
    has_bias = any(name.endswith(".exp_probs_b.bias") for name in keys.gguf.tensors)
    # Files of DeepSeek-V2 predate the gating key; only V3's routers have a correction bias.
    scoring = stated.get("scoring_func", "sigmoid" if has_bias else "softmax")
    if has_bias != (scoring == "sigmoid"):
        raise _unsupported(
            keys.gguf,
            text("{scoring} routing with exp_probs_b", scoring=scoring)
            if has_bias
            else text("{scoring} routing without exp_probs_b", scoring=scoring),
        )
    shape = (stated.get("n_routed_experts", 0), stated.get("num_hidden_layers", 0))
    n_group, topk_group = _KNOWN_GROUPS.get(shape, (1, 1))
    inferences: list[Text] = []
    if not stated.get("n_group"):
        if n_group > 1:
            inferences.append(
                text(
                    "expert groups: the GGUF does not say; using {topk_group} of {n_group}, as "
                    "the DeepSeek model of {num_experts} experts in {num_layers} layers does",
                    topk_group=topk_group,
                    n_group=n_group,
                    num_experts=shape[0],
                    num_layers=shape[1],
                )
            )
        elif shape not in _KNOWN_GROUPS:
            inferences.append(text("expert groups: the GGUF does not say; routing without them"))
    n_group = stated.get("n_group") or n_group
    method = "noaux_tc"
    if scoring == "softmax":
        method = "group_limited_greedy" if n_group > 1 else "greedy"
    inferred = {
        "scoring_func": scoring,
        "n_group": n_group,
        "topk_group": topk_group if n_group > 1 else 1,
        "topk_method": method,
    }
    return inferred, inferences


def _rope_scaling(keys: _Keys) -> YarnScaling | None:
    """YaRN from `rope.scaling.*`.

    For this architecture llama.cpp's converter stores yarn_log_multiplier = 0.1 * mscale_all_dim
    (its conversion of DeepseekV2Model, kept for old files). mscale itself is not stored; every
    published model has mscale = mscale_all_dim.
    """
    kind = keys.text("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind != "yarn":
        raise _unsupported(keys.gguf, text("rope scaling of type {kind!r}", kind=kind))
    factor = keys.number("rope.scaling.factor", 1.0)
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier")
    mscale = {}
    if log_multiplier:
        value = round(10 * log_multiplier, 6)
        mscale = {"mscale": value, "mscale_all_dim": value}
    return YarnScaling(
        factor=factor or 1.0,
        original_max_position_embeddings=keys.integer("rope.scaling.original_context_length") or 0,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast") or 32.0,
        beta_slow=keys.number("rope.scaling.yarn_beta_slow") or 1.0,
        **mscale,
    )


def _vocab_size(keys: _Keys) -> int | None:
    """The rows of the embedding, which may be more than the tokenizer knows."""
    embedding = keys.gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        return embedding.shape[0]
    return keys.integer("vocab_size")


def _tokens(keys: _Keys) -> dict[str, Any]:
    ids = [keys.integer(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return {
        "bos_token_id": keys.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_ids": tuple(dict.fromkeys(id for id in ids if id is not None)),
    }


def _unsupported(gguf: GgufModel, feature: Text) -> KtopsError:
    return KtopsError(
        "unsupported-model-feature",
        text(
            "{path} asks for {feature}; ktops does not support that.",
            path=gguf.paths[0],
            feature=feature,
        ),
        "ktops models",
    )
