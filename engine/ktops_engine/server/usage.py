"""True token counts, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence

from ktops_engine.server.choice import Choice


def usage(prompt_lengths: Sequence[int], choices: Sequence[Choice]) -> dict[str, object]:
    """Counts of one call: each prompt once, every choice's sampled tokens.

    `choices` holds the choices of the first prompt, then those of the second, and so on; a
    prompt's cached tokens are those of its first choice.
    """
    per_prompt = len(choices) // len(prompt_lengths)
    prompt_tokens = sum(prompt_lengths)
    completion_tokens = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(choice.num_cached_tokens for choice in choices[::per_prompt])
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(choice.num_reasoning_tokens for choice in choices)
        },
    }
