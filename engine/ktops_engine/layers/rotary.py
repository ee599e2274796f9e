"""Rotary position embedding with YaRN scaling, on interleaved pairs."""

from __future__ import annotations

import math

import torch

from ktops_engine.model_config import ModelConfig, YarnScaling


def yarn_mscale(factor: float, mscale: float) -> float:
    """Attention magnitude correction of YaRN (Peng et al., 2023, arXiv:2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def attention_scale(config: ModelConfig) -> float:
    """Factor on query-key products: head_dim^-0.5, times the YaRN correction squared."""
    scale = 1 / math.sqrt(config.qk_nope_head_dim + config.qk_rope_head_dim)
    scaling = config.rope_scaling
    if scaling is not None and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def _yarn_inv_freq(inv_freq: torch.Tensor, theta: float, yarn: YarnScaling) -> torch.Tensor:
    """Slow rotations are interpolated, fast ones kept, with a linear ramp between (section 3.2)."""
    dim = 2 * inv_freq.shape[0]

    def pair_with_rotations(rotations: float) -> float:
        span = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(theta))

    low = max(math.floor(pair_with_rotations(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with_rotations(yarn.beta_slow)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return inv_freq / yarn.factor * (1 - keep) + inv_freq * keep


class Rotary:
    """Rotations by position, for the model's rotary dimensions.

    Pairs stay interleaved: query and key are turned alike, so their products do not depend on
    where a pair's halves lie.
    """

    def __init__(self, config: ModelConfig, max_positions: int) -> None:
        dim, theta = config.qk_rope_head_dim, config.rope_theta
        inv_freq = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        magnitude = 1.0
        if (yarn := config.rope_scaling) is not None:
            inv_freq = _yarn_inv_freq(inv_freq, theta, yarn)
            magnitude = yarn_mscale(yarn.factor, yarn.mscale or 1.0)
            if yarn.mscale and yarn.mscale_all_dim:
                magnitude /= yarn_mscale(yarn.factor, yarn.mscale_all_dim)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inv_freq)
        self._table = torch.polar(torch.full_like(angles, magnitude), angles)

    @property
    def cos_sin(self) -> torch.Tensor:
        """The rotations of all positions, [max_positions, dim / 2, 2] float32."""
        return torch.view_as_real(self._table)

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """positions: [tokens] int64 -> rotations [tokens, 1, dim / 2] complex64."""
        return self._table[positions].unsqueeze(1)


def rotate(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Turn interleaved pairs. x: [tokens, heads, dim] float32 -> the same shape."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2)
