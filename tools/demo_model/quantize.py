"""GGUF block quantisation in torch: one function gives the integers and scales of a tensor.

Training uses it (quantise, dequantise, pass the gradient through) and so does the export (quantise,
pack), so the exported weights are exactly those that the last training steps saw.
Layouts: ggml-common.h of llama.cpp (block_q4_K, block_q6_K, block_q8_0, block_q5_0), read through
`gguf.quants`, which the tests compare with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Quantised rows. `q`: [n, block] integers; `value = scale * q - offset` per weight."""

    q: Tensor  # [n, block] integral, in the range that is stored
    scale: Tensor  # [n, block] float32
    offset: Tensor  # [n, block] float32
    head: tuple[Tensor, ...]  # what pack() needs besides q


def _half(x: Tensor) -> Tensor:
    """Round to float16, the stored type of a block's scale, and come back."""
    return x.to(torch.float16).to(torch.float32)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), 1.0 / torch.where(x == 0, 1.0, x))


def quantize_q4_k(w: Tensor) -> Blocks:
    """w: [n, 256] float32. Eight groups of 32 with a 6-bit scale and a 6-bit minimum each."""
    g = w.view(-1, 8, 32)
    low = g.amin(-1).clamp(max=0.0)
    step = (g.amax(-1).clamp(min=0.0) - low) / 15.0
    d, dmin = _half(step.amax(-1) / 63.0), _half((-low).amax(-1) / 63.0)
    sc = torch.round(step * _inverse(d)[:, None]).clamp(0, 63)
    mn = torch.round(-low * _inverse(dmin)[:, None]).clamp(0, 63)
    scale, offset = (d[:, None] * sc)[..., None], (dmin[:, None] * mn)[..., None]
    q = torch.round((g + offset) * _inverse(scale)).clamp(0, 15)
    wide = [t.expand(g.shape).reshape(-1, 256) for t in (scale, offset)]
    return Blocks(q.reshape(-1, 256), wide[0], wide[1], (d, dmin, sc, mn))


def pack_q4_k(b: Blocks) -> Tensor:
    """[n, 144] uint8: d, dmin, 12 bytes of scales and minima, 128 bytes of nibbles."""
    d, dmin, sc, mn = b.head
    sc, mn = sc.to(torch.uint8), mn.to(torch.uint8)
    lo_sc, hi_sc, lo_mn, hi_mn = sc[:, :4], sc[:, 4:], mn[:, :4], mn[:, 4:]
    scales = torch.cat(
        [lo_sc | (hi_sc >> 4) << 6, lo_mn | (hi_mn >> 4) << 6, (hi_sc & 15) | (hi_mn & 15) << 4], 1
    )
    q = b.q.to(torch.uint8).view(-1, 4, 2, 32)
    nibbles = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return torch.cat([_half_bytes(d), _half_bytes(dmin), scales, nibbles], 1)


def quantize_q6_k(w: Tensor) -> Blocks:
    """w: [n, 256] float32. Sixteen groups of 16 with an 8-bit scale each, no minimum."""
    g = w.view(-1, 16, 16)
    step = g.abs().amax(-1) / 31.0
    d = _half(step.amax(-1) / 127.0)
    sc = torch.round(step * _inverse(d)[:, None]).clamp(0, 127)
    scale = (d[:, None] * sc)[..., None]
    q = torch.round(g * _inverse(scale)).clamp(-32, 31)
    wide = scale.expand(g.shape).reshape(-1, 256)
    return Blocks(q.reshape(-1, 256), wide, torch.zeros_like(wide), (d, sc))


def pack_q6_k(b: Blocks) -> Tensor:
    """[n, 210] uint8: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d."""
    d, sc = b.head
    q = (b.q + 32).to(torch.uint8).view(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = torch.cat([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], -1)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [ql.reshape(-1, 128), qh.reshape(-1, 64), sc.to(torch.int8).view(torch.uint8)]
    return torch.cat([*parts, _half_bytes(d)], 1)


def _symmetric(w: Tensor, low: int, high: int) -> Blocks:
    d = _half(w.abs().amax(-1, keepdim=True) / high)
    q = torch.round(w * _inverse(d)).clamp(low, high)
    wide = d.expand(w.shape)
    return Blocks(q, wide, torch.zeros_like(wide), (d[:, 0],))


def quantize_q8_0(w: Tensor) -> Blocks:
    """w: [n, 32] float32; one scale, int8."""
    return _symmetric(w, -127, 127)


def pack_q8_0(b: Blocks) -> Tensor:
    """[n, 34] uint8: d, 32 int8."""
    return torch.cat([_half_bytes(b.head[0]), b.q.to(torch.int8).view(torch.uint8)], 1)


def quantize_q5_0(w: Tensor) -> Blocks:
    """w: [n, 32] float32; one scale, 5 bits, zero at 16."""
    return _symmetric(w, -16, 15)


def pack_q5_0(b: Blocks) -> Tensor:
    """[n, 22] uint8: d, 32 fifth bits, 16 bytes of nibbles (first half low, second half high)."""
    q = (b.q + 16).to(torch.uint8)
    bits = (q >> 4).view(-1, 4, 8) << torch.arange(8, dtype=torch.uint8, device=q.device)
    low = q & 15
    nibbles = low[:, :16] | low[:, 16:] << 4
    return torch.cat([_half_bytes(b.head[0]), bits.sum(-1).to(torch.uint8), nibbles], 1)


def _half_bytes(x: Tensor) -> Tensor:
    return x.to(torch.float16).contiguous().view(torch.uint8).view(-1, 2)


@dataclass(frozen=True)
class Codec:
    """One GGUF type: weights a block and the two halves of its conversion."""

    block: int
    quantize: Callable[[Tensor], Blocks]
    pack: Callable[[Blocks], Tensor]


CODECS = {
    "Q4_K": Codec(256, quantize_q4_k, pack_q4_k),
    "Q6_K": Codec(256, quantize_q6_k, pack_q6_k),
    "Q8_0": Codec(32, quantize_q8_0, pack_q8_0),
    "Q5_0": Codec(32, quantize_q5_0, pack_q5_0),
}


def round_trip(w: Tensor, type_name: str) -> Tensor:
    """The values that a reader of the file gets back for `w`; same shape, float32."""
    codec = CODECS[type_name]
    b = codec.quantize(w.detach().float().reshape(-1, codec.block))
    return (b.scale * b.q - b.offset).view(w.shape)


def packed(w: Tensor, type_name: str) -> Tensor:
    """The bytes of `w` in the file. [..., cols] float32 to [..., bytes a row] uint8."""
    codec = CODECS[type_name]
    b = codec.quantize(w.detach().float().reshape(-1, codec.block))
    return codec.pack(b).reshape(*w.shape[:-1], -1)
