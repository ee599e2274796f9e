"""DeepSeek-V3's forward pass for training; parameters carry GGUF names and shapes.

It computes what `DeepseekV3ForCausalLM` of transformers computes (a test compares the logits), with
two liberties: every routed expert runs on every token and the unchosen get weight zero, which turns
the experts into three large matrix products; and the key/value up-projection is kept as the two
matrices that the file stores.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_model.quantize import round_trip
from demo_model.shape import Shape


class Weight(nn.Module):
    """One tensor of the file. While `fake_quant` is on, it is used as the file will store it."""

    def __init__(self, *shape: int, file_type: str, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * std)
        self.file_type = file_type
        self.fake_quant = False

    def forward(self) -> Tensor:
        if not self.fake_quant:
            return self.weight
        return self.weight + (round_trip(self.weight, self.file_type) - self.weight).detach()


class Norm(nn.Module):
    """Root mean square normalisation in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps))


class Bias(nn.Module):
    """The router's correction bias: moved by the load, never by a gradient."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(size))


def yarn_inverse_frequencies(shape: Shape) -> Tensor:
    """[qk_rope_head_dim / 2] float32, as `transformers` computes them for type yarn."""
    dim, base, yarn = shape.qk_rope_head_dim, shape.rope_theta, shape.yarn
    length = yarn.original_max_position_embeddings

    def turns_at(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(turns_at(yarn.beta_fast)), 0)
    high = min(math.ceil(turns_at(yarn.beta_slow)), dim - 1)
    extrapolated = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return extrapolated / yarn.factor * ramp + extrapolated * (1 - ramp)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [batch, heads, seq, rope]; neighbours (2i, 2i+1) are one complex number."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def file_types(layer: int) -> dict[str, str]:
    """The Q4_K_M mix: value and down projections get 6 bits in every second layer."""
    more = layer % 2 == 0
    return {"sensitive": "Q6_K" if more else "Q4_K", "narrow": "Q8_0" if more else "Q5_0"}


class Block(nn.Module):
    """One layer: latent attention, then a dense or a mixture-of-experts feed-forward."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.shape, self.dense = shape, shape.is_dense(layer)
        s, types = shape, file_types(layer)
        h, heads = s.hidden_size, s.num_attention_heads
        out_std = 1.0 / math.sqrt(2 * s.num_hidden_layers)

        def matrix(*dims: int, kind: str = "", gain: float = 1.0, fan_in: int = 0) -> Weight:
            std = gain / math.sqrt(fan_in or dims[-1])
            return Weight(*dims, file_type=types.get(kind, "Q4_K"), std=std)

        self.attn_norm, self.ffn_norm = Norm(h, s.rms_norm_eps), Norm(h, s.rms_norm_eps)
        self.attn_q_a = matrix(s.q_lora_rank, h)
        self.attn_q_a_norm = Norm(s.q_lora_rank, s.rms_norm_eps)
        self.attn_q_b = matrix(heads * s.qk_head_dim, s.q_lora_rank)
        self.attn_kv_a_mqa = matrix(s.kv_lora_rank + s.qk_rope_head_dim, h)
        self.attn_kv_a_norm = Norm(s.kv_lora_rank, s.rms_norm_eps)
        nope, rank = s.qk_nope_head_dim, s.kv_lora_rank
        self.attn_k_b = matrix(heads, rank, nope, kind="narrow", fan_in=rank)
        self.attn_v_b = matrix(heads, s.v_head_dim, rank, kind="sensitive")
        self.attn_output = matrix(h, heads * s.v_head_dim, gain=out_std)
        if self.dense:
            inner = s.intermediate_size
            self.ffn_gate, self.ffn_up = matrix(inner, h), matrix(inner, h)
            self.ffn_down = matrix(h, inner, kind="sensitive", gain=out_std)
            return
        experts, inner = s.n_routed_experts, s.moe_intermediate_size
        self.ffn_gate_inp = Weight(experts, h, file_type="F32", std=1.0 / math.sqrt(h))
        self.exp_probs_b = Bias(experts)
        self.ffn_gate_exps = matrix(experts, inner, h)
        self.ffn_up_exps = matrix(experts, inner, h)
        self.ffn_down_exps = matrix(experts, h, inner, kind="sensitive", gain=out_std / 2)
        shared = inner * s.n_shared_experts
        self.ffn_gate_shexp, self.ffn_up_shexp = matrix(shared, h), matrix(shared, h)
        self.ffn_down_shexp = matrix(h, shared, kind="sensitive", gain=out_std)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, seq, hidden]"""
        s = self.shape
        batch, seq, _ = x.shape
        q = F.linear(self.attn_q_a_norm(F.linear(x, self.attn_q_a())), self.attn_q_b())
        q = q.view(batch, seq, s.num_attention_heads, s.qk_head_dim).transpose(1, 2)
        q_nope, q_rope = q.split([s.qk_nope_head_dim, s.qk_rope_head_dim], -1)
        kv = F.linear(x, self.attn_kv_a_mqa())
        latent, k_rope = kv.split([s.kv_lora_rank, s.qk_rope_head_dim], -1)
        latent = self.attn_kv_a_norm(latent)
        k_b = self.attn_k_b().permute(0, 2, 1).reshape(-1, s.kv_lora_rank)
        k_nope = F.linear(latent, k_b).view(batch, seq, -1, s.qk_nope_head_dim).transpose(1, 2)
        v = F.linear(latent, self.attn_v_b().reshape(-1, s.kv_lora_rank))
        v = v.view(batch, seq, -1, s.v_head_dim).transpose(1, 2)
        q = torch.cat([q_nope, rotate_pairs(q_rope, cos, sin)], -1)
        k_rope = rotate_pairs(k_rope[:, None], cos, sin).expand_as(q_rope)
        k = torch.cat([k_nope, k_rope], -1)
        scale = s.yarn.attention_mscale**2 / math.sqrt(s.qk_head_dim)
        v = F.pad(v, (0, s.qk_head_dim - s.v_head_dim))  # flash attention wants equal widths
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        y = y[..., : s.v_head_dim].transpose(1, 2).reshape(batch, seq, -1)
        return F.linear(y, self.attn_output())

    def route(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]. Returns [tokens, experts] float32, zero where not chosen."""
        s = self.shape
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.ffn_gate_inp.weight).sigmoid()
        choice = scores.detach() + self.exp_probs_b.bias
        groups = choice.view(-1, s.n_group, s.n_routed_experts // s.n_group)
        best = groups.topk(2, -1).values.sum(-1).topk(s.topk_group, -1).indices
        open_groups = torch.zeros_like(groups[..., 0]).scatter(1, best, 1.0)
        choice = torch.where(open_groups[..., None] > 0, groups, 0.0).flatten(1)
        chosen = choice.topk(s.num_experts_per_tok, -1).indices
        kept = scores * torch.zeros_like(scores).scatter(1, chosen, 1.0)
        return kept / (kept.sum(-1, keepdim=True) + 1e-20) * s.routed_scaling_factor

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: [batch, seq, hidden]. Returns the output and the tokens each expert got."""
        if self.dense:
            gated = F.silu(F.linear(x, self.ffn_gate())) * F.linear(x, self.ffn_up())
            return F.linear(gated, self.ffn_down()), None
        flat = x.flatten(0, 1)
        weights = self.route(flat)
        gate = F.linear(flat, self.ffn_gate_exps().flatten(0, 1))
        inner = F.silu(gate) * F.linear(flat, self.ffn_up_exps().flatten(0, 1))
        experts, width = self.ffn_gate_exps.weight.shape[:2]
        inner = inner.view(-1, experts, width) * weights[..., None].to(inner.dtype)
        down = self.ffn_down_exps().permute(1, 0, 2).flatten(1)
        routed = F.linear(inner.flatten(1), down)
        gated = F.silu(F.linear(flat, self.ffn_gate_shexp())) * F.linear(flat, self.ffn_up_shexp())
        y = routed + F.linear(gated, self.ffn_down_shexp())
        return y.view_as(x), (weights.detach() > 0).sum(0)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x + self.attention(self.attn_norm(x), cos, sin)
        y, load = self.feed_forward(self.ffn_norm(x))
        return x + y, load


class DemoModel(nn.Module):
    """The whole network; `state_dict()` has exactly the tensors of the GGUF file."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        vocab, h = shape.vocab_size, shape.hidden_size
        self.token_embd = Weight(vocab, h, file_type="Q4_K", std=0.5)
        self.blk = nn.ModuleList(Block(shape, i) for i in range(shape.num_hidden_layers))
        self.output_norm = Norm(h, shape.rms_norm_eps)
        self.output = Weight(vocab, h, file_type="Q6_K", std=1.0 / math.sqrt(h))
        self.register_buffer("inv_freq", yarn_inverse_frequencies(shape), persistent=False)

    def hidden(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """ids: [batch, seq]. Returns [batch, seq, hidden] after the last norm, and the loads."""
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        x, loads = F.embedding(ids, self.token_embd()), []
        for block in self.blk:
            x, load = block(x, cos, sin)
            if load is not None:
                loads.append(load)
        return self.output_norm(x), loads

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [batch, seq]. Returns logits [batch, seq, vocab]."""
        return F.linear(self.hidden(ids)[0], self.output())

    def set_fake_quant(self, on: bool) -> None:
        """Use every quantised tensor as the file will store it, with straight-through gradients."""
        for module in self.modules():
            if isinstance(module, Weight) and module.file_type != "F32":
                module.fake_quant = on

    def tensor_types(self) -> dict[str, str]:
        """GGUF tensor name to GGUF type name."""
        types = dict.fromkeys(self.state_dict(), "F32")
        for name, module in self.named_modules():
            if isinstance(module, Weight):
                types[f"{name}.weight"] = module.file_type
        return types
