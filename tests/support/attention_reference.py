"""What the attention kernels are held against: plain torch in float64, one step a line."""

from __future__ import annotations

import math

import torch


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance of the two in relation to the length of `expected`; not a number counts as inf."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    error = float((actual - expected).norm() / expected.norm())
    return math.inf if math.isnan(error) else error


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def random_rotations(num_tokens: int, rope: int, device: str, seed: int = 0) -> torch.Tensor:
    """[tokens, rope / 2, 2] float32, angles anywhere."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(num_tokens, rope // 2, generator=generator) * 2 * math.pi
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(device)


def rotate(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """x: [tokens, heads, rope], pairs interleaved."""
    rotations = torch.view_as_complex(cos_sin.double().contiguous())[:, None]
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * rotations).flatten(-2)


def latent_attention(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One new token of each sequence against its blocks of 64 cache rows, all heads; queries are
    turned by the token's rotation."""
    q_rope = rotate(q_rope, cos_sin)
    rank = q_latent.shape[2]
    out = torch.zeros_like(q_latent, dtype=torch.float64)
    for token, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        positions = torch.arange(length, device=cache.device)
        slots = block_tables[token].long()[positions // 64] * 64 + positions % 64
        entries = cache[slots].double()
        query = torch.cat((q_latent[token], q_rope[token]), dim=-1).double()
        out[token] = (query @ entries.t() * scale).softmax(-1) @ entries[:, :rank]
    return out
