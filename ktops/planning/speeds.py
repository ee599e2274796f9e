"""Predictions and what was measured, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktops_engine.machine import MachineFacts
    from ktops_engine.measured_speeds import Measured, MeasuredSpeeds
    from ktops_engine.plan import (
        ModelFacts,
        Placement,
        Prediction,
        PromptPrediction,
        Resource,
        Unknown,
    )


@dataclass(frozen=True)
class Speed:
    """Tokens a second of decode (`prompt_tokens` 0) or of a prompt, with one request: the range
    (low, high) that is predicted, what limits its high end, and what was measured before."""

    prompt_tokens: int
    predicted: tuple[float, float] | None
    limited_by: Resource | None
    measured: Measured | None

    @property
    def falls_short(self) -> bool:
        """Whether what was measured is less than this machine should give."""
        if self.predicted is None or self.measured is None:
            return False
        return self.measured.figure.tokens_per_s < self.predicted[0]


def side_by_side(
    placement: Placement,
    prediction: Prediction | Unknown,
    measured: MeasuredSpeeds | None,
    facts: ModelFacts,
    machine: MachineFacts,
) -> tuple[Speed, ...]:
    """Decode, then prompts by length: those that are predicted, and those that were measured. A
    measured one takes the place of a predicted one of about its length, and is held against the
    prediction for its own. Nothing where nothing is known."""
    from ktops_engine.measured_speeds import MeasuredSpeeds
    from ktops_engine.plan import Prediction, predict_prompt
    from ktops_engine.speed_meter import prompt_class

    measured = measured or MeasuredSpeeds()
    known = prediction if isinstance(prediction, Prediction) else None
    speeds = []
    if known is not None:
        speeds.append(Speed(0, known.decode_tokens_per_s, known.limited_by, measured.decode))
    elif measured.decode is not None:
        speeds.append(Speed(0, None, None, measured.decode))
    prompts = [
        _of_prompt(prompt, prompt.num_tokens, None)
        for prompt in (known.prompts if known else ())
        if prompt_class(prompt.num_tokens) not in measured.prompts
    ]
    for found in measured.prompts.values():
        length = found.figure.length
        prompts.append(_of_prompt(predict_prompt(placement, facts, machine, length), length, found))
    return (*speeds, *sorted(prompts, key=lambda speed: speed.prompt_tokens))


def _of_prompt(
    predicted: PromptPrediction | Unknown, num_tokens: int, measured: Measured | None
) -> Speed:
    rate = getattr(predicted, "tokens_per_s", None)
    return Speed(num_tokens, rate, getattr(predicted, "limited_by", None), measured)
