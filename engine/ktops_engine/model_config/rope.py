"""YaRN's parameters (Peng et al., 2023, arXiv:2309.00071) as DeepSeek's config.json gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ktops_engine.errors import KtopsError
from ktops_engine.text import text


@dataclass(frozen=True)
class YarnScaling:
    """Rotary scaling beyond the trained context.

    Frequencies between `beta_slow` and `beta_fast` rotations over
    `original_max_position_embeddings` are interpolated by `factor`. Cosines and sines are scaled
    by m(mscale) / m(mscale_all_dim), the attention scale by m(mscale_all_dim) squared, where
    m(x) = 0.1 * x * ln(factor) + 1.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        """Raise KtopsError config-invalid for values that make no frequencies."""
        problem: str | None = None
        if not 1 <= self.factor < math.inf:
            problem = text("factor = {factor}; it must be at least 1", factor=self.factor)
        elif not 0 < self.original_max_position_embeddings < 1 << 31:
            problem = f"original_max_position_embeddings = {self.original_max_position_embeddings}"
        elif not 0 < self.beta_slow < self.beta_fast < math.inf:
            problem = text(
                "beta_slow = {slow} and beta_fast = {fast}",
                slow=self.beta_slow,
                fast=self.beta_fast,
            )
        elif not (0 <= self.mscale < math.inf and 0 <= self.mscale_all_dim < math.inf):
            problem = text(
                "mscale = {mscale} and mscale_all_dim = {all_dim}",
                mscale=self.mscale,
                all_dim=self.mscale_all_dim,
            )
        if problem is not None:
            raise KtopsError(
                "config-invalid",
                text("The model's rope scaling has {problem}.", problem=problem),
                text("Download the model's config.json again"),
            )
