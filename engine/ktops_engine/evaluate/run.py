"""A model's predictions of a text, window by window, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.errors import KtopsError
from ktops_engine.evaluate.reference import ReferenceReader, kept_tokens
from ktops_engine.evaluate.reference_writer import ReferenceWriter
from ktops_engine.evaluate.scores import (
    Divergence,
    Floats,
    compare,
    make_records,
    target_log_probs,
)
from ktops_engine.evaluate.windows import TokenWindows, Window
from ktops_engine.loader import LoadedModel
from ktops_engine.sampler import Sampler
from ktops_engine.text import text
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

# Logits of one step, so many that prompts are computed as fast as when serving: 518 tokens of R1.
LOGITS_BYTES = 256 << 20
FLOAT32_BYTES = 4
LARGEST_EXPONENT = 700.0  # exp of more is no float64


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood `mean_nll` (nats), and its standard error.

    The error takes the tokens as independent, which those of one window are not quite.
    """

    mean_nll: float
    value: float
    standard_error: float


@dataclass(frozen=True)
class Comparison:
    """This run against a reference. KL divergences in nats, of the reference from this run.

    `difference` is this perplexity less the reference's, its standard error that of pairs;
    `same_best` the share of positions with the same likeliest token; `rms_probability` the root
    mean square of how much the probability of the token that came differs; `outside` the mean
    probability of the tokens that the reference has not kept apart.
    """

    reference: Perplexity
    difference: float
    difference_standard_error: float
    kl_mean: float
    kl_standard_error: float
    kl_median: float
    kl_p99: float
    kl_max: float
    same_best: float
    rms_probability: float
    outside: float


@dataclass(frozen=True)
class Evaluation:
    """What a run gave. log_probs: [positions], of the tokens that came."""

    log_probs: Floats
    divergence: Divergence | None

    @property
    def perplexity(self) -> Perplexity:
        return perplexity_of(self.log_probs)

    @property
    def comparison(self) -> Comparison | None:
        """None without a reference."""
        return None if self.divergence is None else _compared(self.log_probs, self.divergence)


@dataclass(frozen=True)
class EvalProgress:
    """A point of a run: tokens predicted so far, of how many, with what mean in nats."""

    done_tokens: int
    total_tokens: int
    mean_nll: float


def evaluate(
    loaded: LoadedModel,
    windows: TokenWindows,
    *,
    reference: ReferenceReader | None = None,
    writer: ReferenceWriter | None = None,
    on_progress: Callable[[EvalProgress], None] = lambda progress: None,
) -> Evaluation:
    """Predict every token of `windows`, each window from an empty context.

    `reference` is of the same windows and stands at its first record; `writer` has begun, and is
    committed by the caller. Raises KtopsError "logits-not-finite", and as reader and writer do.
    """
    scores: list[Floats] = []
    divergences: list[Divergence] = []
    done, total_log_prob = 0, 0.0
    for logits, targets in _steps(loaded, windows):
        _refuse_infinite(logits, done)
        scores.append(target_log_probs(logits, targets))
        if reference is not None:
            divergences.append(compare(logits, reference.read(len(targets))))
        if writer is not None:
            writer.write(make_records(logits, targets, kept_tokens(logits.shape[1])))
        done += len(targets)
        total_log_prob += float(scores[-1].sum())
        on_progress(EvalProgress(done, windows.num_targets, -total_log_prob / done))
    return Evaluation(np.concatenate(scores), _concatenated(divergences))


@torch.inference_mode()
def _steps(loaded: LoadedModel, windows: TokenWindows) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Logits [tokens, vocab] of some tokens, in order, and the tokens that came."""
    placement = loaded.placement
    chunk = LOGITS_BYTES // (FLOAT32_BYTES * loaded.config.vocab_size)
    chunk = min(max(chunk, 1), placement.prefill_chunk)
    runner = loaded.new_runner(Sampler([]))
    for window in windows:
        request = _request(window, placement.num_blocks)
        for start in range(0, len(window.inputs), chunk):
            targets = window.targets[start : start + chunk]
            item = BatchItem(request, start, len(targets), samples=True)
            yield runner.logits(Batch((item,))), targets


def _request(window: Window, num_blocks: int) -> Request:
    """A sequence that has the whole cache: what it reads there, it has written before."""
    blocks = list(range(num_blocks))
    return Request("evaluate", window.inputs, SamplingParams(), block_table=blocks)


def _refuse_infinite(logits: torch.Tensor, done: int) -> None:
    lowest, highest = torch.aminmax(logits)  # NaN where there is one
    if not bool(torch.isfinite(highest - lowest)):
        raise KtopsError(
            "logits-not-finite",
            text(
                "the model's logits are not finite numbers, after {count} tokens of the text",
                count=done,
            ),
            "ktops models verify",
        )


def perplexity_of(log_probs: Floats) -> Perplexity:
    """log_probs: [positions], at least one. Infinite where it is no float64."""
    mean = -float(log_probs.mean())
    value = math.exp(mean) if mean < LARGEST_EXPONENT else math.inf
    return Perplexity(mean, value, value * _standard_error(log_probs))


def _compared(log_probs: Floats, found: Divergence) -> Comparison:
    ours, theirs = perplexity_of(log_probs), perplexity_of(found.ref_target)
    apart = np.exp(log_probs) - np.exp(found.ref_target)
    difference, error = math.nan, math.nan
    if math.isfinite(ours.value) and math.isfinite(theirs.value):
        difference = ours.value - theirs.value
        # To first order in what each token adds to both perplexities.
        error = _standard_error(ours.value * log_probs - theirs.value * found.ref_target)
    return Comparison(
        reference=theirs,
        difference=difference,
        difference_standard_error=error,
        kl_mean=float(found.kl.mean()),
        kl_standard_error=_standard_error(found.kl),
        kl_median=float(np.median(found.kl)),
        kl_p99=float(np.quantile(found.kl, 0.99)),
        kl_max=float(found.kl.max()),
        same_best=float(found.same_best.mean()),
        rms_probability=float(np.sqrt(np.square(apart).mean())),
        outside=float(found.outside.mean()),
    )


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    """Of the mean of `values`; not known, so NaN, of a single one."""
    if values.size < 2:
        return math.nan
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def _concatenated(parts: list[Divergence]) -> Divergence | None:
    if not parts:
        return None
    return Divergence(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("kl", "same_best", "ref_target", "outside")
        )
    )
