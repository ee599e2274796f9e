"""An evaluation as a document for programs and as a table for people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ktops.evaluation.session import Evaluated
from ktops.output import Output
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops_engine.evaluate.reference import ReferenceHeader
    from ktops_engine.evaluate.run import Comparison


def document(done: Evaluated) -> dict[str, object]:
    """What --json prints; numbers that are not finite become null."""
    header, perplexity = done.header, done.evaluation.perplexity
    comparison = done.evaluation.comparison
    request = done.request
    return {
        "model": header.model,
        "text": {"path": str(request.file), "sha256": header.text_sha256},
        "tokens": header.num_positions,
        "tokens_sha256": header.tokens_sha256,
        "window": header.window,
        "windows": done.num_windows,
        "isa": header.isa,
        "gpu_layers": done.gpu_layers,
        "seconds": round(done.seconds, 3),
        "tokens_per_s": round(header.num_positions / done.seconds, 3),
        "negative_log_likelihood": _finite(perplexity.mean_nll),
        "perplexity": _finite(perplexity.value),
        "perplexity_standard_error": _finite(perplexity.standard_error),
        "saved": None if request.save is None else str(request.save),
        "reference": None
        if done.reference is None or comparison is None
        else _reference(done, done.reference, comparison),
    }


def _reference(
    done: Evaluated, header: ReferenceHeader, comparison: Comparison
) -> dict[str, object]:
    return {
        "path": str(done.request.reference),
        "model": header.model,
        "isa": header.isa,
        "kept_tokens": header.top_k,
        "mean_outside": _finite(comparison.outside),
        "perplexity": _finite(comparison.reference.value),
        "perplexity_standard_error": _finite(comparison.reference.standard_error),
        "perplexity_difference": _finite(comparison.difference),
        "perplexity_difference_standard_error": _finite(comparison.difference_standard_error),
        "kl_divergence": {
            "mean": _finite(comparison.kl_mean),
            "standard_error": _finite(comparison.kl_standard_error),
            "median": _finite(comparison.kl_median),
            "p99": _finite(comparison.kl_p99),
            "max": _finite(comparison.kl_max),
        },
        "same_best": _finite(comparison.same_best),
        "rms_probability_difference": _finite(comparison.rms_probability),
    }


def lines(done: Evaluated, output: Output) -> list[str]:
    """The answer as a table."""
    rows = [(output.say(name), value) for name, value in _rows(done)]
    return output.table(rows, (text("measure"), text("value")))


def quiet_line(done: Evaluated) -> str:
    """The perplexity alone."""
    return f"{done.evaluation.perplexity.value:.6f}"


def _rows(done: Evaluated) -> Iterator[tuple[str, str]]:
    perplexity, comparison = done.evaluation.perplexity, done.evaluation.comparison
    yield text("perplexity"), _with_error(perplexity.value, perplexity.standard_error)
    if done.reference is None or comparison is None:
        return
    theirs = comparison.reference
    yield text("of the reference"), _with_error(theirs.value, theirs.standard_error)
    error = comparison.difference_standard_error
    yield text("difference"), _with_error(comparison.difference, error, sign="+")
    mean = _with_error(comparison.kl_mean, comparison.kl_standard_error)
    yield text("KL divergence, mean"), mean
    yield text("KL divergence, median"), _number(comparison.kl_median)
    yield text("KL divergence, 99 %"), _number(comparison.kl_p99)
    yield text("KL divergence, largest"), _number(comparison.kl_max)
    yield text("same likeliest token"), f"{100 * comparison.same_best:.3f} %"
    yield text("RMS difference of probability"), f"{100 * comparison.rms_probability:.3g} %"
    yield text("probability not told apart"), f"{100 * comparison.outside:.3g} %"


def _with_error(value: float, error: float, sign: str = "") -> str:
    return (
        f"{_number(value, sign)} +- {error:.2g}" if math.isfinite(error) else _number(value, sign)
    )


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.6g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
