"""`ktops eval`: how well a model predicts a text, and how far that is from another run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.launch.dummy import LoadFormat, read_load_format
from ktops.launch.stages import Order
from ktops.options import (
    CpuInfer,
    GgufPath,
    GpuExperts,
    GpuMemory,
    Load,
    ModelPath,
    Numa,
    NumHiddenLayers,
    Yes,
)
from ktops.settings import load_settings
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

COMMAND = ("ktops", "eval")
EXAMPLES = (
    ("ktops eval demo text.txt", "perplexity of a text"),
    ("ktops eval demo text.txt --save-reference before.ktops-eval", "kept for later runs"),
    ("ktops eval demo text.txt --reference before.ktops-eval", "the same after a change"),
    ("ktops eval r1-q4km text.txt --max-tokens 4096 -q", "the perplexity alone"),
    ("ktops eval --gguf-path ./R1-GGUF text.txt", "files of your own"),
)


def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A name that `ktops models` lists.", show_default=False
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="The text, in UTF-8. Given alone: for the model that `ktops serve` takes.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens read together; default: the reference's, or 512.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Only the first so many tokens of FILE.", show_default=False),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Compare with what --save-reference wrote.", show_default=False),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(help="Write what later runs can be compared with.", show_default=False),
    ] = None,
    cpu_infer: CpuInfer = None,
    gpu_memory: GpuMemory = None,
    gpu_experts: GpuExperts = None,
    numa: Numa = None,
    gguf_path: GgufPath = None,
    model_path: ModelPath = None,
    load_format: Load = LoadFormat.AUTO,
    num_hidden_layers: NumHiddenLayers = None,
    yes: Yes = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace a reference; go on where only a warning would stop it."
        ),
    ] = False,
) -> None:
    """Perplexity of a text, and the distance from another run of it.

    The text is read in windows, each for itself; every token is predicted from
    those before it in its window. With --reference, the Kullback-Leibler
    divergence (nats) of the kept run from this one shows what a change of
    kernels, weights or placement does to the model's answers.
    """
    from ktops.evaluation.session import Request, run_evaluation
    from ktops.evaluation.view import document, lines, quiet_line

    output = output_of(ctx)
    if file is None:
        model, file = None, model
    if file is None:
        raise KtopsError(
            "usage",
            text("a text to evaluate is missing"),
            "ktops eval MODEL FILE",
            exit_status=EXIT_USAGE,
        )
    dummy = read_load_format(load_format, num_hidden_layers, "ktops eval")
    settings = load_settings(
        cpu_infer=cpu_infer, gpu_memory=gpu_memory, gpu_experts=gpu_experts, numa=numa
    )
    given = {
        "--window": window,
        "--max-tokens": max_tokens,
        "--reference": reference,
        "--save-reference": save_reference,
        "--cpu-infer": cpu_infer,
        "--gpu-memory": gpu_memory,
        "--gpu-experts": gpu_experts,
        "--numa": numa,
    }
    words = (
        str(word) for flag, value in given.items() if value is not None for word in (flag, value)
    )
    order = Order(
        COMMAND, model, gguf_path, model_path, assume_yes=yes, force=force, dummy=dummy,
        rest=(file, *words),
    )  # fmt: skip
    done = run_evaluation(
        output,
        settings,
        Request(order, Path(file), window, max_tokens, reference, save_reference),
    )
    output.result(document(done), human=lines(done, output), quiet=[quiet_line(done)])
