"""The attention layer of a GPU against float64, over a paged cache that fills step by step.

Bound: 2e-2 relative L2, for bfloat16 between all of its products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from attention_reference import random_rotations, relative_error, rms_norm, rotate

from ktops_engine.layers import gpu_attention
from ktops_engine.layers.gpu_attention import GpuAttentionWeights, GpuMlaAttention, QueryCompression
from ktops_engine.layers.rotary import attention_scale
from ktops_engine.model_config import ModelConfig

BOUND = 2e-2
MAX_BLOCKS = 4


SMALL = ModelConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=64, moe_intermediate_size=64,
    num_hidden_layers=2, num_attention_heads=3, n_shared_experts=1, n_routed_experts=8,
    num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1,
    topk_method="greedy", scoring_func="softmax", norm_topk_prob=False,
    routed_scaling_factor=1.0, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16,
    qk_rope_head_dim=8, v_head_dim=24, rope_theta=1e4, rope_scaling=None, rms_norm_eps=1e-6,
    max_position_embeddings=1000, bos_token_id=None, eos_token_ids=(1,),
)  # fmt: skip


class PlainProjection:
    """A bfloat16 matrix with the interface of GpuLinear."""

    def __init__(self, rows: int, cols: int, device: str) -> None:
        self.weight = (torch.randn(rows, cols) * cols**-0.5).bfloat16().to(device)

    def __call__(
        self,
        x: torch.Tensor,
        *,
        add_to: torch.Tensor | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor:
        y = (x.float() @ self.weight.float().t()).to(out_dtype)
        return y if add_to is None else add_to.add_(y)


class PlainKvUp:
    """bfloat16 up-projections with the interface of KvUp."""

    def __init__(self, config: ModelConfig, device: str) -> None:
        heads, rank = config.num_attention_heads, config.kv_lora_rank
        scale = rank**-0.5
        self.key = (torch.randn(heads, rank, config.qk_nope_head_dim) * scale).bfloat16().to(device)
        self.value = (torch.randn(heads, config.v_head_dim, rank) * scale).bfloat16().to(device)

    def absorb_key(self, q: torch.Tensor) -> torch.Tensor:
        return torch.einsum("thn,hrn->thr", q.float(), self.key.float()).bfloat16()

    def absorb_value(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.einsum("thr,hvr->thv", latent.float(), self.value.float()).bfloat16()

    def expand(self, first_head: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        heads = slice(first_head, first_head + num_heads)
        return self.key[heads], self.value[heads]


@dataclass(frozen=True)
class Step:
    positions: torch.Tensor
    block_tables: torch.Tensor
    num_tokens: tuple[int, ...]
    starts: tuple[int, ...]


class Sequences:
    """Sequences that grow in one cache, and what attention over all their tokens should give."""

    def __init__(self, config: ModelConfig, device: str, num_sequences: int) -> None:
        torch.manual_seed(7)
        self.config, self.device = config, device
        hidden, heads = config.hidden_size, config.num_attention_heads
        width = config.kv_lora_rank + config.qk_rope_head_dim
        compressed = config.q_lora_rank
        self.kv_a = PlainProjection(width, hidden, device)
        self.query_a = PlainProjection(compressed or 1, hidden, device)
        self.query_norm = torch.rand(compressed or 1, device=device) + 0.5
        self.weights = GpuAttentionWeights(
            down=QueryCompression(self.down, self.query_norm) if compressed else self.kv_a,
            query_b=PlainProjection(heads * config.qk_head_dim, compressed or hidden, device),
            kv_norm=torch.rand(config.kv_lora_rank, device=device) + 0.5,
            kv_up=PlainKvUp(config, device),
            output=PlainProjection(hidden, heads * config.v_head_dim, device),
        )
        self.layer = GpuMlaAttention(self.weights, config)
        num_blocks = num_sequences * MAX_BLOCKS
        self.tables = torch.randperm(num_blocks).view(num_sequences, -1).int().to(device)
        self.cache = torch.full((num_blocks * 64, width), float("nan"), device=device).bfloat16()
        self.rotations = random_rotations(MAX_BLOCKS * 64, config.qk_rope_head_dim, device)
        nothing = torch.empty(0, hidden, dtype=torch.bfloat16, device=device)
        self.inputs = [nothing] * num_sequences

    def down(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compressed queries and latents."""
        query, kv = (a(h, out_dtype=torch.float32) for a in (self.query_a, self.kv_a))
        return query, kv

    def step(self, num_tokens: tuple[int, ...], *, decode: bool = False) -> float:
        """Add tokens to each sequence; the error of the layer's result."""
        starts = tuple(len(inputs) for inputs in self.inputs)
        new = [
            torch.randn(count, self.config.hidden_size, device=self.device).bfloat16()
            for count in num_tokens
        ]
        self.inputs = [torch.cat(pair) for pair in zip(self.inputs, new, strict=True)]
        ends = [len(inputs) for inputs in self.inputs]
        positions = [
            torch.arange(start, end, device=self.device)
            for start, end in zip(starts, ends, strict=True)
        ]
        slots = torch.cat(
            [
                table.long()[at // 64] * 64 + at % 64
                for table, at in zip(self.tables, positions, strict=True)
            ]
        )
        lengths = torch.tensor(ends, dtype=torch.int32, device=self.device)
        h = torch.cat(new)
        residual = torch.randn(h.shape, device=self.device)
        x = residual.clone()
        cos_sin = self.rotations[torch.cat(positions)]
        if decode:
            self.layer.decode(h, x, cos_sin, self.cache, slots, self.tables, lengths)
        else:
            step = Step(torch.cat(positions).int(), self.tables, num_tokens, starts)
            self.layer.prefill(h, x, cos_sin, self.cache, slots, step)
        expected = [
            self._expected(inputs)[start:]
            for inputs, start in zip(self.inputs, starts, strict=True)
        ]
        return relative_error(x - residual, torch.cat(expected))

    def _expected(self, h: torch.Tensor) -> torch.Tensor:
        """Causal attention of a whole sequence in float64, keys and values expanded."""
        w, config = self.weights, self.config
        eps, rank, nope = config.rms_norm_eps, config.kv_lora_rank, config.qk_nope_head_dim
        h = h.double()
        turn = self.rotations[: len(h)]
        kv = h @ self.kv_a.weight.double().t()
        latent = rms_norm(kv[:, :rank], w.kv_norm, eps)
        k_rope = rotate(kv[:, None, rank:], turn)[:, 0]
        if config.q_lora_rank is not None:
            h = rms_norm(h @ self.query_a.weight.double().t(), self.query_norm, eps)
        q = (h @ w.query_b.weight.double().t()).view(len(h), config.num_attention_heads, -1)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], turn)), dim=-1).transpose(0, 1)
        k_nope = latent @ w.kv_up.key.double()
        key = torch.cat((k_nope, k_rope.expand(len(q), -1, -1)), dim=-1)
        scores = q @ key.transpose(1, 2) * attention_scale(config)
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out = weights @ (latent @ w.kv_up.value.double().transpose(1, 2))
        return out.transpose(0, 1).flatten(1) @ w.output.weight.double().t()


@pytest.mark.parametrize("q_lora_rank", [48, None])
def test_a_prompt_in_chunks_and_its_decode_are_causal_attention(
    device: str, q_lora_rank: int | None
) -> None:
    sequences = Sequences(replace(SMALL, q_lora_rank=q_lora_rank), device, num_sequences=1)

    for count in (66, 1, 5):
        assert sequences.step((count,)) < BOUND
    for _ in range(2):
        assert sequences.step((1,), decode=True) < BOUND


@pytest.mark.parametrize("max_absorbed", [gpu_attention.MAX_FEW_TOKENS, 0])
def test_decodes_and_prompts_share_a_step(
    device: str, max_absorbed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_attention, "MAX_FEW_TOKENS", max_absorbed)
    sequences = Sequences(SMALL, device, num_sequences=4)

    assert sequences.step((3, 65, 18, 1)) < BOUND
    assert sequences.step((1, 1, 5, 19)) < BOUND
    assert sequences.step((1, 1, 1, 1), decode=True) < BOUND


def test_heads_in_groups_give_the_same_result(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, num_attention_heads=5)
    # Two heads' keys and values of 30 tokens beside the queries and outputs.
    scratch = 2 * 30 * (5 * (16 + 8 + 24) + 2 * (16 + 24))
    monkeypatch.setattr(gpu_attention, "MAX_SCRATCH_BYTES", scratch)
    monkeypatch.setattr(gpu_attention, "MIN_EXPANDED_BYTES", 0)
    sequences = Sequences(config, device, num_sequences=1)

    assert [(group.start, group.stop) for group in sequences.layer._head_groups(30, 30)] == [
        (0, 2),
        (2, 4),
        (4, 5),
    ]
    assert sequences.step((30,)) < BOUND


@pytest.mark.gpu
def test_r1_in_full_size(device: str) -> None:
    config = replace(
        SMALL, hidden_size=7168, num_attention_heads=128, q_lora_rank=1536, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    )  # fmt: skip
    sequences = Sequences(config, device, num_sequences=3)

    assert sequences.step((200, 1, 17)) < BOUND
    assert sequences.step((1, 1, 1), decode=True) < BOUND
    assert sequences.step((1, 50, 1)) < BOUND
