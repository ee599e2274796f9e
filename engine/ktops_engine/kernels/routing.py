"""Tokens with the router's choice for them, as it passes between what computes experts."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Routing(NamedTuple):
    """h: [tokens, hidden_size] bfloat16; expert_ids: [tokens, top_k] int32, negative ones are
    nobody's; expert_weights: [tokens, top_k] float32. All contiguous and on one device."""

    h: torch.Tensor
    expert_ids: torch.Tensor
    expert_weights: torch.Tensor
