"""Read config.json and generation_config.json of a config-only folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ktops_engine.errors import KtopsError
from ktops_engine.model_config.json_file import read_json_object, unusable
from ktops_engine.model_config.rope import YarnScaling
from ktops_engine.text import text

SUPPORTED_MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "kimi_k2")

_INTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_shared_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "first_k_dense_replace",
    "moe_layer_freq",
    "n_group",
    "topk_group",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
)
_FLOATS = ("routed_scaling_factor", "rms_norm_eps")
_NULL_MEANS = MappingProxyType(
    {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 0}
)


def read_config_json(folder: Path) -> dict[str, Any]:
    """The `ModelConfig` fields that config.json gives, by name.

    Both spellings of rotary scaling are read: `rope_scaling` beside `rope_theta`, and
    transformers 5's `rope_parameters`. Raises KtopsError: config-not-found, config-invalid,
    unsupported-architecture, unsupported-model-feature.
    """
    path = folder / "config.json"
    raw = read_json_object(path)
    if raw is None:
        raise KtopsError(
            "config-not-found",
            text("There is no config.json in {folder}.", folder=folder),
            text(
                "Give --model-path a folder with the model's config.json, or leave it out to "
                "use the GGUF's own values"
            ),
        )
    _check_architecture(path, raw)
    _check_features(path, raw)
    values: dict[str, Any] = {}
    for name in _INTS:
        if name in raw:
            value = raw[name]
            values[name] = _integer(path, name, value) if value is not None else None
    values = {
        name: _NULL_MEANS.get(name) if value is None else value
        for name, value in values.items()
        if value is not None or name in _NULL_MEANS
    }
    for name in _FLOATS:
        if raw.get(name) is not None:
            values[name] = _number(path, name, raw[name])
    values |= _routing(path, raw)
    values |= _rope(path, raw)
    values |= _tokens(path, raw, read_json_object(folder / "generation_config.json") or {})
    return values


def _check_architecture(path: Path, raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type in SUPPORTED_MODEL_TYPES:
        return
    architectures = raw.get("architectures") or [model_type or text("no architecture")]
    named = architectures[0] if isinstance(architectures, list) else architectures
    raise KtopsError(
        "unsupported-architecture",
        text(
            "{path} describes {named} (model_type {model_type}); ktops runs DeepSeek-V2, "
            "V2-Lite, V3, R1 and Kimi-K2 (model_type {supported}).",
            path=path,
            named=named,
            model_type=model_type,
            supported=", ".join(SUPPORTED_MODEL_TYPES),
        ),
        "ktops models",
    )


def _check_features(path: Path, raw: Mapping[str, Any]) -> None:
    found: str | None = None
    if raw.get("hidden_act", "silu") != "silu":
        found = f"hidden_act {raw['hidden_act']!r}"
    elif raw.get("attention_bias"):
        found = "attention_bias"
    elif raw.get("mlp_bias"):
        found = "mlp_bias"
    elif raw.get("index_topk") is not None:
        found = text("sparse attention (index_topk)")
    elif raw.get("rope_interleave") is False:
        found = text("rotary embedding that is not interleaved")
    if found is not None:
        raise _unsupported(path, found)


def _routing(path: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Routing, with the defaults of each family: transformers 5 leaves them out for V3."""
    is_v3 = raw["model_type"] != "deepseek_v2"
    values: dict[str, Any] = {
        "topk_method": raw.get("topk_method") or ("noaux_tc" if is_v3 else "greedy"),
        "scoring_func": raw.get("scoring_func") or ("sigmoid" if is_v3 else "softmax"),
    }
    for name, value in values.items():
        if not isinstance(value, str):
            raise unusable(path, text("{name} is {value!r}, not a name", name=name, value=value))
    norm = raw.get("norm_topk_prob")
    values["norm_topk_prob"] = is_v3 if norm is None else norm
    if not isinstance(values["norm_topk_prob"], bool):
        raise unusable(path, text("norm_topk_prob is {norm!r}, not true or false", norm=norm))
    if values["topk_method"] == "greedy":
        # Without a group limit the group fields mean nothing, whatever they say.
        values |= {"n_group": 1, "topk_group": 1}
    return values


def _rope(path: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise unusable(
            path, text("its rope scaling is {scaling!r}, not an object", scaling=scaling)
        )
    values: dict[str, Any] = {"rope_scaling": None}
    theta = scaling.get("rope_theta", raw.get("rope_theta"))
    if theta is not None:
        values["rope_theta"] = _number(path, "rope_theta", theta)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return values
    if kind != "yarn":
        raise _unsupported(path, text("rope scaling of type {kind!r}", kind=kind))
    if scaling.get("attention_factor") is not None or scaling.get("truncate") is False:
        raise _unsupported(path, text("rope scaling with attention_factor or without truncation"))

    def number(name: str, default: float | None = None) -> float:
        value = scaling.get(name)
        label = text("rope scaling's {name}", name=name)
        return _number(path, label, default if value is None else value)

    original = scaling.get("original_max_position_embeddings")
    values["rope_scaling"] = YarnScaling(
        factor=number("factor"),
        original_max_position_embeddings=_integer(
            path,
            text("rope scaling's {name}", name="original_max_position_embeddings"),
            original,
        ),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        mscale=number("mscale", 1.0),
        mscale_all_dim=number("mscale_all_dim", 0.0),
    )
    return values


def _tokens(path: Path, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if raw.get("bos_token_id") is not None:
        values["bos_token_id"] = _integer(path, "bos_token_id", raw["bos_token_id"])
    eos: list[int] = []
    for source, file in ((raw, path), (generation, path.with_name("generation_config.json"))):
        given = source.get("eos_token_id")
        listed = given if isinstance(given, list) else [] if given is None else [given]
        eos += [_integer(file, "eos_token_id", token_id) for token_id in listed]
    if eos:
        values["eos_token_ids"] = tuple(dict.fromkeys(eos))
    return values


def _integer(path: Path, name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise unusable(path, text("{name} is {value!r}, not a whole number", name=name, value=value))


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise unusable(path, text("{name} is {value!r}, not a number", name=name, value=value))


def _unsupported(path: Path, feature: str) -> KtopsError:
    return KtopsError(
        "unsupported-model-feature",
        text("{path} asks for {feature}; ktops does not support that.", path=path, feature=feature),
        "ktops models",
    )
