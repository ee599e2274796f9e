"""Options that several commands take, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CpuInfer = Annotated[
    int | None,
    typer.Option(help="CPU threads for the experts; default: one a core.", show_default=False),
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
