"""What a deepseek2 model is: its sizes, routing and rotary scaling, checked before anything runs.

Two sources describe a model: config.json (Hugging Face's names, used here) and GGUF metadata.
config.json wins, because GGUFs of early 2025 leave keys out; `resolve_model_config` merges them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel
from ktops_engine.model_config.fit import check_fits_tensors
from ktops_engine.model_config.from_gguf import read_gguf_config
from ktops_engine.model_config.from_json import read_config_json
from ktops_engine.model_config.rope import YarnScaling
from ktops_engine.text import Text, joined, text

_ROUTING = MappingProxyType(
    {
        "noaux_tc": "sigmoid",
        "group_limited_greedy": "softmax",
        "greedy": "softmax",
    }
)
_MAX_SIZE = 1 << 24
_MAY_BE_ZERO = frozenset({"n_shared_experts", "first_k_dense_replace"})


@dataclass(frozen=True)
class ModelConfig:
    """A deepseek2 model under Hugging Face's names; every instance has passed `__post_init__`.

    `topk_method` is "noaux_tc" (V3: sigmoid scores, correction bias, groups by their two best),
    "group_limited_greedy" (V2: softmax, groups by their best) or "greedy" (V2-Lite: no groups;
    `n_group` and `topk_group` are 1). `q_lora_rank` None: queries have one projection.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_shared_experts: int
    n_routed_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    n_group: int
    topk_group: int
    topk_method: str
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float
    rope_scaling: YarnScaling | None
    rms_norm_eps: float
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool = False
    moe_layer_freq: int = 1

    def __post_init__(self) -> None:
        """Raise KtopsError config-invalid or unsupported-model-feature, naming the field."""
        self._check_sizes()
        self._check_routing()
        if not 0 < self.rms_norm_eps < 1:
            raise _invalid("rms_norm_eps", self.rms_norm_eps, text("a number between 0 and 1"))
        if not 1 < self.rope_theta < math.inf:
            raise _invalid("rope_theta", self.rope_theta, text("a number above 1"))
        if not 0 < self.routed_scaling_factor < math.inf:
            raise _invalid("routed_scaling_factor", self.routed_scaling_factor, text("positive"))
        for token_id in (self.bos_token_id, *self.eos_token_ids):
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise _invalid(
                    text("a bos or eos token id"),
                    token_id,
                    text("below {limit}", limit=self.vocab_size),
                )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_dense_layer(self, layer: int) -> bool:
        """Whether a layer has one feed-forward network instead of experts."""
        return layer < self.first_k_dense_replace

    def _check_sizes(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Annotations are texts in this module.
            if field.type == "int" or (field.name == "q_lora_rank" and value is not None):
                lowest = 0 if field.name in _MAY_BE_ZERO else 1
                if not lowest <= value <= _MAX_SIZE:
                    raise _invalid(
                        field.name,
                        value,
                        text(
                            "a number from {low} to {high}",
                            low=lowest,
                            high=_MAX_SIZE,
                        ),
                    )
        if self.qk_rope_head_dim % 2:
            raise _invalid("qk_rope_head_dim", self.qk_rope_head_dim, text("even: it holds pairs"))
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise _invalid(
                "first_k_dense_replace",
                self.first_k_dense_replace,
                text(
                    "at most num_hidden_layers ({value})",
                    value=self.num_hidden_layers,
                ),
            )
        if self.moe_layer_freq != 1:
            raise _unsupported(
                text(
                    "moe_layer_freq {value} (only 1 is)",
                    value=self.moe_layer_freq,
                )
            )

    def _check_routing(self) -> None:
        if _ROUTING.get(self.topk_method) != self.scoring_func:
            raise _unsupported(
                text(
                    "expert routing {method!r} on {scores!r} scores (only {known})",
                    method=self.topk_method,
                    scores=self.scoring_func,
                    known=joined(
                        text("{method} on {scores}", method=method, scores=scores)
                        for method, scores in _ROUTING.items()
                    ),
                )
            )
        group_size, rest = divmod(self.n_routed_experts, self.n_group)
        if rest or (self.topk_method == "noaux_tc" and self.n_group > 1 and group_size < 2):
            raise _invalid(
                "n_group",
                self.n_group,
                text(
                    "a divisor of {count} experts, in twos",
                    count=self.n_routed_experts,
                ),
            )
        if self.topk_group > self.n_group:
            raise _invalid(
                "topk_group",
                self.topk_group,
                text("at most n_group ({value})", value=self.n_group),
            )
        reachable = self.topk_group * group_size
        if self.num_experts_per_tok > reachable:
            raise _invalid(
                "num_experts_per_tok",
                self.num_experts_per_tok,
                text("at most the {reachable} experts a token can reach", reachable=reachable),
            )


def resolve_model_config(
    gguf: GgufModel, model_path: Path | None
) -> tuple[ModelConfig, list[Text]]:
    """The configuration of `gguf`, and notes for the log on what was taken from where.

    `model_path` is a folder with config.json (and generation_config.json, for more end tokens);
    its values win over the file's. Raises KtopsError: unsupported-architecture,
    unsupported-model-feature, config-invalid, config-not-found, config-mismatch (config.json does
    not fit the tensors), gguf-metadata-invalid.
    """
    from_file = read_gguf_config(gguf)
    values: dict[str, Any] = from_file.inferred | from_file.stated
    notes = list(from_file.notes)
    if model_path is None:
        source = str(gguf.paths[0])
        notes += from_file.inferences
    else:
        source = str(model_path / "config.json")
        from_json = read_config_json(model_path)
        notes += _differences(from_json, from_file.stated)
        values |= from_json
    # The tensors are the truth here: a tied model has no separate output matrix.
    values["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    required = {field.name for field in fields(ModelConfig)}
    missing = sorted(required - values.keys() - {"moe_layer_freq"})
    if missing:
        raise KtopsError(
            "gguf-metadata-invalid",
            text("{path} does not say: {names}.", path=gguf.paths[0], names=", ".join(missing)),
            text("Give the folder of the model's config.json: --model-path FOLDER"),
        )
    config = ModelConfig(**values)
    check_fits_tensors(config, gguf, source)
    return config, notes


def _differences(from_json: Mapping[str, Any], from_file: Mapping[str, Any]) -> list[Text]:
    return [
        text(
            "{name}: config.json has {here}, the GGUF has {there}; using config.json",
            name=name,
            here=from_json[name],
            there=from_file[name],
        )
        for name in sorted(from_json.keys() & from_file.keys())
        if not _same(from_json[name], from_file[name])
    ]


def _same(left: Any, right: Any) -> bool:
    """Equality, except that GGUF keeps numbers as float32."""
    if isinstance(left, YarnScaling) and isinstance(right, YarnScaling):
        return all(
            _same(getattr(left, field.name), getattr(right, field.name))
            for field in fields(YarnScaling)
        )
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)


def _invalid(name: str, value: object, expected: Text) -> KtopsError:
    return KtopsError(
        "config-invalid",
        text(
            "The model's configuration has {name} = {value}; it must be {expected}.",
            name=name,
            value=value,
            expected=expected,
        ),
        text(
            "Download the model's config.json again, or drop --model-path to use the GGUF's"
            " own values"
        ),
    )


def _unsupported(feature: Text) -> KtopsError:
    return KtopsError(
        "unsupported-model-feature",
        text(
            "The model's configuration asks for {feature}; ktops does not support that.",
            feature=feature,
        ),
        "ktops models",
    )
