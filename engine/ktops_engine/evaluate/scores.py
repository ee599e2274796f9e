"""From logits to log probabilities and divergences, in float64, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.evaluate.reference import record_dtype

Floats = npt.NDArray[np.float64]

LOWEST_FLOAT32 = float(np.finfo(np.float32).min)
# Values of a piece that is computed in float64 at once: 32 MiB, of a few such tensors.
PIECE_VALUES = 4 << 20


@dataclass(frozen=True)
class Divergence:
    """Position by position, this run against a reference: [positions] each.

    `kl` is the Kullback-Leibler divergence in nats of the reference from this run, `same_best`
    whether the reference's likeliest token is this run's too, `ref_target` the reference's log
    probability of the token that came, `outside` its probability of all tokens it has not kept.
    """

    kl: Floats
    same_best: npt.NDArray[np.bool_]
    ref_target: Floats
    outside: Floats


def target_log_probs(logits: torch.Tensor, targets: list[int]) -> Floats:
    """logits: [positions, vocab] float32 -> [positions], of each position's target."""
    found = [
        (values.gather(1, ids) - values.logsumexp(1, keepdim=True)).squeeze(1)
        for values, ids in _pieces(logits, torch.tensor(targets)[:, None])
    ]
    return _floats(torch.cat(found))


def make_records(logits: torch.Tensor, targets: list[int], top_k: int) -> npt.NDArray[np.void]:
    """logits: [positions, vocab] float32 -> records [positions] of `record_dtype(top_k)`."""
    records = np.empty(len(targets), dtype=record_dtype(top_k))
    ids = torch.cat([logits[rows].topk(top_k).indices for rows in _row_slices(logits)])
    records["target"] = target_log_probs(logits, targets)
    records["ids"] = ids.numpy()
    records["top"], records["rest"] = _kept(logits, ids)
    return records


def compare(logits: torch.Tensor, records: npt.NDArray[np.void]) -> Divergence:
    """logits: [positions, vocab] float32 of this run, beside the reference's records.

    Tokens that a record does not keep count as one: what is left out is their share, `outside`,
    times the divergence among themselves, so that `kl` is never more than the whole divergence.
    """
    ids = torch.from_numpy(records["ids"].astype(np.int64))
    top, rest = _kept(logits, ids)
    kl = _terms(records["top"].astype(np.float64), top.astype(np.float64)).sum(axis=1)
    if ids.shape[1] < logits.shape[1]:
        kl += _terms(records["rest"], rest)
    best = logits.gather(1, ids[:, :1]).squeeze(1)
    return Divergence(
        kl=kl,
        same_best=(best == logits.amax(1)).numpy(),
        ref_target=records["target"].copy(),
        outside=np.exp(records["rest"]),
    )


def _terms(ref: Floats, ours: Floats) -> Floats:
    """p log(p / q) - p + q of log probabilities p and q, element by element.

    The sum over a distribution is its divergence, since p and q both sum to one. No term is
    negative, and rounding errors of p count in second order only: with d = log(p / q) a term is
    p (d + exp(-d) - 1), which is p d^2 / 2 for small d.
    """
    p, q, d = np.exp(ref), np.exp(ours), ref - ours
    near = np.abs(d) < 1.0
    small = np.where(near, d, 0.0)
    terms: Floats = np.where(near, p * (small + np.expm1(-small)), p * d - p + q)
    return np.maximum(terms, 0.0)


def _kept(logits: torch.Tensor, ids: torch.Tensor) -> tuple[npt.NDArray[np.float32], Floats]:
    """Log probabilities of `ids` [positions, top_k], rounded to float32, and of all others."""
    top, rest = [], []
    for values, chosen in _pieces(logits, ids):
        kept = values.gather(1, chosen)
        others = values.scatter(1, chosen, float("-inf")).logsumexp(1, keepdim=True)
        total = torch.logaddexp(kept.logsumexp(1, keepdim=True), others)
        top.append((kept - total).clamp(min=LOWEST_FLOAT32).float())
        rest.append((others - total).squeeze(1))
    return torch.cat(top).numpy(), _floats(torch.cat(rest))


def _pieces(logits: torch.Tensor, ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some rows of the logits, in float64, and the same rows of `ids`, at a time."""
    for rows in _row_slices(logits):
        yield logits[rows].double(), ids[rows]


def _row_slices(logits: torch.Tensor) -> Iterator[slice]:
    step = max(1, PIECE_VALUES // logits.shape[1])
    return (slice(start, start + step) for start in range(0, logits.shape[0], step))


def _floats(values: torch.Tensor) -> Floats:
    found: Floats = values.numpy()
    return found
