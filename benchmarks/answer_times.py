"""How long a model takes for each token of an answer."""

from __future__ import annotations

import queue
import statistics
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


def batch_rate(llm, prompts: list[list[int]], num_tokens: int) -> float:
    """Tokens a second of several answers together, greedy, while none has ended."""
    from ktops_engine import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    outputs: queue.SimpleQueue = queue.SimpleQueue()
    times: dict[str, list[float]] = {
        llm.submit(prompt, params, outputs.put): [] for prompt in prompts
    }
    ended = False
    while not ended:
        output = outputs.get()
        if output.error:
            raise SystemExit(output.error)
        times[output.request_id].append(time.perf_counter())
        ended = output.finish_reason is not None
    last = min(times.values(), key=len)  # began last, so all were under way
    for request_id in times:
        llm.abort(request_id)
    return len(prompts) / statistics.median(after - before for before, after in pairwise(last))
