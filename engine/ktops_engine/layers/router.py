"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

import torch
from torch.nn import functional

from ktops_engine.model_config import ModelConfig


class Router:
    """Scores of all experts, limited to the best groups, then the best experts of those.

    V3 (`noaux_tc`, DeepSeek-V3 report, arXiv:2412.19437, section 2.1.2): sigmoid scores; a
    correction bias takes part in the choice only; a group's score is the sum of its two best.
    V2 (`group_limited_greedy`, arXiv:2405.04434, section 2.2.2): softmax scores; a group's score
    is its best. V2-Lite (`greedy`): softmax scores, no groups.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, config: ModelConfig
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.config = config

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [tokens, hidden_size] float32 -> expert_ids [tokens, top_k] int32, expert_weights
        [tokens, top_k] float32."""
        config = self.config
        logits = functional.linear(x, self.weight)
        scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(-1)
        choice = scores if self.bias is None else scores + self.bias
        if config.topk_method != "greedy" and config.n_group > config.topk_group:
            choice = self._limit_to_groups(choice)
        expert_ids = choice.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        expert_weights = scores.gather(-1, expert_ids)
        if config.norm_topk_prob:
            expert_weights = expert_weights / (expert_weights.sum(-1, keepdim=True) + 1e-20)
        return expert_ids.to(torch.int32), expert_weights * config.routed_scaling_factor

    def _limit_to_groups(self, choice: torch.Tensor) -> torch.Tensor:
        config = self.config
        groups = choice.view(choice.shape[0], config.n_group, -1)  # [tokens, groups, experts]
        best = 2 if config.topk_method == "noaux_tc" else 1
        group_scores = groups.topk(best, dim=-1, sorted=False).values.sum(-1)
        num_dropped = config.n_group - config.topk_group
        dropped = group_scores.topk(num_dropped, dim=-1, largest=False, sorted=False).indices
        mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, dropped, True)
        return groups.masked_fill(mask.unsqueeze(-1), float("-inf")).flatten(1)
