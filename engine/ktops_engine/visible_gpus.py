"""Which GPUs CUDA_VISIBLE_DEVICES lets through. Standard library only: the doctor asks it too."""

from __future__ import annotations

from collections.abc import Sequence


def visible_gpus(variable: str | None, gpus: Sequence[tuple[str, str]]) -> list[int]:
    """Places in `gpus`, (number, UUID) each as nvidia-smi lists them, of those that the variable
    lets through, in its order; None: it is not set, and lets all through. The first one is the
    server's.

    As CUDA has it (its programming guide, "CUDA Environment Variables"), an empty variable hides
    every GPU, and nothing counts that is named after a GPU that is not there, or named twice.
    """
    if variable is None:
        return list(range(len(gpus)))
    found: list[int] = []
    for word in map(str.strip, variable.split(",")):
        places = (
            place
            for place, (number, uuid) in enumerate(gpus)
            if word == number or (word and uuid.startswith(word))
        )
        place = next(places, None)
        if place is None or place in found:
            break
        found.append(place)
    return found
