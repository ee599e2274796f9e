"""From logits to a token: penalties, temperature, filters, and a draw that can be repeated."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch

from ktops_engine.types import Request, Sampled, SamplingParams, TokenLogprobs

NUM_CANDIDATES = 1024  # sorting these few is cheap; all are sorted only if they do not suffice


def uniform(seed: int, position: int) -> float:
    """The draw in [0, 1) of one position of a request.

    A hash of seed and position: it depends neither on what else runs nor on the device.
    """
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


class Sampler:
    """Draws the next token of each request. Holds no state of any request.

    Logits may lie on a GPU: what has the size of the vocabulary is computed there, and the few
    candidates that are left come back.
    """

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def __call__(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[Sampled]:
        """logits: [requests, vocab_size] float32 -> one answer a request. Logits that are not
        finite fail their own request only."""
        return [self._sample(row, request) for row, request in zip(logits, requests, strict=True)]

    def _sample(self, logits: torch.Tensor, request: Request) -> Sampled:
        best = int(logits.argmax())
        # argmax points at a NaN where there is one.
        if not bool(torch.isfinite(logits[best])):
            return Sampled(None, error="the model's logits are not finite numbers")
        params = request.params
        adjusted = self._adjust(logits, request)
        if params.temperature == 0:
            token_id = best if adjusted is logits else int(adjusted.argmax())
        else:
            token_id = _draw(adjusted / params.temperature, params, len(request.output_token_ids))
        return Sampled(token_id, _logprobs(logits, token_id, params.logprobs))

    def _adjust(self, logits: torch.Tensor, request: Request) -> torch.Tensor:
        """Penalties and biases, as the OpenAI reference and (repetition) CTRL, arXiv:1909.05858,
        define them; `logits` itself where there are none."""
        params, output = request.params, request.output_token_ids
        forbid_stop = len(output) < params.min_tokens
        penalised = output and (params.presence_penalty or params.frequency_penalty)
        if not (forbid_stop or penalised or params.logit_bias or params.repetition_penalty != 1):
            return logits
        logits = logits.clone()
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(request.token_ids)), device=logits.device)
            values = logits[seen]
            factor = params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / factor, values * factor)
        if penalised:
            counts = Counter(output)
            ids = torch.tensor(list(counts), device=logits.device)
            times = torch.tensor(list(counts.values()), device=logits.device, dtype=torch.float32)
            logits[ids] -= params.frequency_penalty * times + params.presence_penalty
        for token_id, bias in params.logit_bias.items():
            logits[token_id] += bias
        if forbid_stop:
            logits[list({*self._eos_token_ids, *params.stop_token_ids})] = float("-inf")
        return logits


def _draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """Top-k, then top-p, then min-p, then one draw from what is left."""
    size = min(params.top_k or logits.numel(), logits.numel())
    num_candidates = min(size, NUM_CANDIDATES)
    probs, ids = _likeliest(logits, num_candidates)
    # Fewer candidates than the filters may keep: sort everything.
    if num_candidates < size and float(probs.sum()) < params.top_p:
        probs, ids = _likeliest(logits, size)
    if params.top_k:
        probs = probs / probs.sum()
    before = probs.cumsum(-1) - probs
    keep = (before < params.top_p) & (probs >= params.min_p * probs[0])
    keep[0] = True  # the likeliest token always stays
    probs = torch.where(keep, probs, 0.0).double()
    target = uniform(params.seed or 0, position) * float(probs.sum())
    index = int(torch.searchsorted(probs.cumsum(-1), target, right=True))
    return int(ids[min(index, int(keep.nonzero()[-1]))])


def _likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and ids of the likeliest tokens, the best first, on the CPU."""
    values, ids = logits.topk(count)
    return (values - logits.logsumexp(-1)).exp().cpu(), ids.cpu()


def _logprobs(logits: torch.Tensor, token_id: int, count: int | None) -> TokenLogprobs | None:
    if count is None:
        return None
    log_probs = logits.log_softmax(-1)
    values, ids = log_probs.topk(min(count, log_probs.numel()))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(float(log_probs[token_id]), top)
