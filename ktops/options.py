"""Options that several commands take, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktops.launch.dummy import LoadFormat


def _number_or_word(raw: str) -> int | str:
    """Numbers as such, so that messages show them plainly; the settings judge the rest."""
    try:
        return int(raw)
    except ValueError:
        return raw


CpuInfer = Annotated[
    str | None,
    typer.Option(
        parser=_number_or_word,
        metavar="N|auto",
        help="CPU threads for the experts; auto, the default: what is fastest here.",
        show_default=False,
    ),
]
GpuMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE|all",
        help="VRAM to use on each GPU; default: as little as serves the model.",
        show_default=False,
    ),
]
GpuExperts = Annotated[
    str | None,
    typer.Option(
        parser=_number_or_word,
        metavar="N|auto",
        help="Routed experts in VRAM, at most; auto, the default: as planned.",
        show_default=False,
    ),
]
Numa = Annotated[
    str | None,
    typer.Option(
        metavar="auto|on|off",
        help="Share rows of the weights out over NUMA nodes; auto: where there are several.",
        show_default=False,
    ),
]
CtxSize = Annotated[
    int | None,
    typer.Option(help="Tokens of prompt and answer together.", show_default=False),
]
GgufPath = Annotated[
    Path | None,
    typer.Option(help="Weights: a GGUF file or its folder.", show_default=False),
]
ModelPath = Annotated[
    Path | None,
    typer.Option(help="Folder with config.json and tokenizer.json.", show_default=False),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Fetch a model that is missing without asking.")
]
Force = Annotated[bool, typer.Option("--force", help="Go on where only a warning would stop it.")]
Load = Annotated[LoadFormat, typer.Option(help="dummy: random weights, to measure without files.")]
NumHiddenLayers = Annotated[
    int | None,
    typer.Option(help="With dummy: only the first so many layers.", show_default=False),
]
