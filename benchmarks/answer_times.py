"""How long a model takes for each token of an answer."""

from __future__ import annotations

import time
from itertools import pairwise


def answer_times(
    llm, prompt: list[int], num_tokens: int, temperature: float = 0
) -> tuple[float, list[float]]:
    """Seconds to the first token, and those from each to the next."""
    from ktops_engine import SamplingParams

    params = SamplingParams(
        temperature=temperature, top_p=1, max_tokens=num_tokens, ignore_eos=True
    )
    times = [time.perf_counter()]
    for output in llm.generate(prompt, params):
        if output.error:
            raise SystemExit(output.error)
        times.append(time.perf_counter())
    gaps = [after - before for before, after in pairwise(times)]
    return gaps[0], gaps[1:]
