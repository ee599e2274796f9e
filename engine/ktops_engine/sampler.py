"""From logits to a token: penalties, temperature, filters, and a draw that can be repeated."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.types import Request, Sampled, SamplingParams, TokenLogprobs

# Sorting these few is cheap. Where they do not tell the token, so many times more are looked at.
NUM_CANDIDATES, GROWTH = 1024, 16
TINY = 1e-30  # by less, logits of any size grow beyond float32

Probabilities = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int32]


def uniform(seed: int, position: int) -> float:
    """The draw in [0, 1) of one position of a request.

    A hash of seed and position: it depends neither on what else runs nor on the device.
    """
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Candidates:
    """The likeliest tokens of a row, the best first, and the sum of the probabilities of all."""

    probs: Probabilities
    ids: TokenIds
    total: float


@dataclass(frozen=True)
class Best:
    """The likeliest token of each row of logits, and its logit: one that is not finite where there
    is one."""

    token_ids: Sequence[int]
    logits: Sequence[float]


def best_of(logits: torch.Tensor) -> Best:
    """logits: [rows, vocab_size] float32, on any device."""
    # argmax points at a NaN where there is one. Ids are exact in float64: one copy brings both.
    best = logits.argmax(-1, keepdim=True)
    token_ids, values = torch.cat((best.double(), logits.gather(1, best).double()), 1).t().tolist()
    return Best([int(token_id) for token_id in token_ids], values)


class Sampler:
    """Draws the next token of each request. Holds no state of any request.

    Logits may lie on a GPU: what has the size of the vocabulary is computed there, and the few
    candidates that are left come back, for all requests at once.
    """

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def __call__(
        self, logits: torch.Tensor, requests: Sequence[Request], best: Best | None = None
    ) -> list[Sampled]:
        """logits: [requests, vocab_size] float32 -> one answer a request; `best` if it is known.
        Logits that are not finite fail their own request only."""
        best = best or best_of(logits)
        chosen: dict[int, int] = {}
        drawn: dict[int, torch.Tensor] = {}
        for i, request in enumerate(requests):
            if not math.isfinite(best.logits[i]):
                continue
            adjusted = self._adjusted(logits, i, request)
            if request.params.temperature != 0:
                drawn[i] = logits[i] if adjusted is None else adjusted
            else:
                chosen[i] = best.token_ids[i] if adjusted is None else int(adjusted.argmax())
        if drawn:
            rows = torch.stack(list(drawn.values()))
            tokens = _draw(rows, [requests[i] for i in drawn])
            chosen.update(zip(drawn, tokens, strict=True))
        return [
            Sampled(chosen[i], _logprobs(logits, i, chosen[i], request.params.logprobs))
            if i in chosen
            else Sampled(None, error="the model's logits are not finite numbers")
            for i, request in enumerate(requests)
        ]

    def _adjusted(self, logits: torch.Tensor, row: int, request: Request) -> torch.Tensor | None:
        """A row with penalties and biases, as the OpenAI reference and (repetition) CTRL,
        arXiv:1909.05858, define them; None where there are none."""
        params, output = request.params, request.output_token_ids
        forbid_stop = len(output) < params.min_tokens
        penalised = output and (params.presence_penalty or params.frequency_penalty)
        if not (forbid_stop or penalised or params.logit_bias or params.repetition_penalty != 1):
            return None
        adjusted = logits[row].clone()
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(request.token_ids)), device=logits.device)
            values = adjusted[seen]
            factor = params.repetition_penalty
            adjusted[seen] = torch.where(values > 0, values / factor, values * factor)
        if penalised:
            counts = Counter(output)
            ids = torch.tensor(list(counts), device=logits.device)
            times = torch.tensor(list(counts.values()), device=logits.device, dtype=torch.float32)
            adjusted[ids] -= params.frequency_penalty * times + params.presence_penalty
        for token_id, bias in params.logit_bias.items():
            adjusted[token_id] += bias
        if forbid_stop:
            adjusted[list({*self._eos_token_ids, *params.stop_token_ids})] = float("-inf")
        return adjusted


def _draw(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """A token for each row, by temperature and the filters of its request."""
    temperatures = [max(request.params.temperature, TINY) for request in requests]
    all_probs = (logits / _column(temperatures, logits.device)).softmax(-1)
    likeliest = _likeliest(all_probs, min(NUM_CANDIDATES, logits.shape[1]))
    tokens = []
    for i, (request, candidates) in enumerate(zip(requests, likeliest, strict=True)):
        params = request.params
        draw = uniform(params.seed or 0, len(request.output_token_ids))
        while more := _more(candidates, params, draw, logits.shape[1]):
            (candidates,) = _likeliest(all_probs[i : i + 1], more)
        tokens.append(_draw_one(candidates, params, draw))
    return tokens


def _more(candidates: Candidates, params: SamplingParams, draw: float, vocab_size: int) -> int:
    """How many candidates to look at where those at hand do not tell the token; 0 where they do."""
    probs = candidates.probs
    limit = min(params.top_k or vocab_size, vocab_size)
    if len(probs) >= limit:
        return 0
    if params.top_k:
        return limit  # the sum of all of them is asked for
    mass = float(probs.cumsum()[-1])
    if params.top_p < 1:
        wanted = params.top_p
        is_told = mass >= wanted
    else:
        wanted = draw * candidates.total
        is_told = mass > wanted and not params.min_p
    if is_told or probs[-1] < params.min_p * probs[0]:
        return 0
    # None of those that follow is likelier than the last one here.
    least = len(probs) + max(wanted - mass, 0.0) / max(float(probs[-1]), TINY)
    return min(max(GROWTH * len(probs), 2 * int(least)), limit)


def _column(values: list[float], device: torch.device) -> torch.Tensor:
    """[rows, 1] float32, without waiting for what the device does."""
    column = torch.tensor(values, pin_memory=device.type == "cuda")
    return column.to(device, non_blocking=True)[:, None]


def _draw_one(candidates: Candidates, params: SamplingParams, draw: float) -> int:
    """Top-k, then top-p, then min-p, then one draw from what is left of the likeliest tokens."""
    probs, total = candidates.probs, candidates.total
    if params.top_k:
        probs = probs[: params.top_k]
        probs = probs / probs.sum()
    keep = probs >= params.min_p * probs[0]
    if params.top_p < 1:
        keep &= probs.cumsum() - probs < params.top_p
    keep[0] = True  # the likeliest token always stays
    sums = np.where(keep, probs, 0.0).cumsum()
    is_filtered = params.top_k or params.top_p < 1 or params.min_p
    target = draw * (sums[-1] if is_filtered else total)
    index = int(sums.searchsorted(target, side="right"))
    return int(candidates.ids[min(index, keep.nonzero()[0][-1])])


def _likeliest(all_probs: torch.Tensor, count: int) -> list[Candidates]:
    """The likeliest `count` tokens of each row."""
    probs, ids = all_probs.topk(count)
    totals = all_probs.sum(-1, keepdim=True, dtype=torch.float64).view(torch.float32)
    parts = probs, ids.int().view(torch.float32), totals
    return [
        Candidates(
            row[:count].astype(np.float64),
            row[count:-2].view(np.int32),
            float(row[-2:].view(np.float64)[0]),
        )
        for row in torch.cat(parts, 1).cpu().numpy()  # in one copy
    ]


def _logprobs(
    logits: torch.Tensor, row: int, token_id: int, count: int | None
) -> TokenLogprobs | None:
    if count is None:
        return None
    log_probs = logits[row].log_softmax(-1)
    values, ids = log_probs.topk(min(count, log_probs.numel()))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(float(log_probs[token_id]), top)
