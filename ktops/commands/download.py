"""`ktops download`: fetch a model's weights and configuration, and prove that they are whole."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.fetching import DEFAULT_WORKERS, Fetched, carry_out, plan_document
from ktops.hub.planning import DownloadPlan, Step, check_space
from ktops.hub.rate import parse_rate
from ktops.hub.request import resolve_request
from ktops.hub.sources import Source, plan_download
from ktops.hub.store import find_folder
from ktops.output import Output
from ktops.settings import load_settings
from ktops.units import format_bytes
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

EXAMPLES = (
    ("ktops download r1-q4km --dry-run", "what it would fetch, and how much"),
    ("ktops download r1-q4km", "376.7 GiB; run it again to go on"),
    ("ktops download r1-q4km --verify", "read every file here once more"),
    ("ktops download r1-q4km --max-rate 50MB/s", "leave some of the line to others"),
    ("ktops download v2-lite-q4km --to /data/v2-lite", "somewhere else"),
    ("ktops download hf:OWNER/NAME --include '*Q4_K_M*'", "anything else that is GGUF"),
)


def download(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="A name of `ktops models`, hf:OWNER/NAME or ms:OWNER/NAME."),
    ],
    include: Annotated[
        list[str] | None,
        typer.Option(help="Weight files to fetch, as a pattern; repeatable.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder to put it in.", show_default=False)
    ] = None,
    models_dir: Annotated[
        Path | None, typer.Option(help="Folder of the downloaded models.", show_default=False)
    ] = None,
    source: Annotated[
        Source, typer.Option(help="The hub; auto measures which is faster.")
    ] = Source.AUTO,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of the hub or of a mirror.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Files at once.")] = DEFAULT_WORKERS,
    max_rate: Annotated[
        str | None,
        typer.Option(help="Ceiling of all files together, e.g. 200MB/s.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file that is here once more.")
    ] = False,
) -> None:
    """Fetch a model: weights and configuration, verified, resumable.

    Sizes and free space are checked before the first byte. Ctrl-C or a lost connection keeps what
    has arrived; the same command goes on from there. A file is read to verify it only once.
    """
    output = output_of(ctx)
    rate = parse_rate(max_rate) if max_rate is not None else None
    settings = load_settings(models_dir=models_dir)
    request = resolve_request(
        model, settings.models_dir, include=tuple(include or ()), to=to, source=source
    )
    plan = plan_download(request, endpoint, reread=verify, measure=not dry_run, on_note=output.note)
    if dry_run:
        _preview(plan, output)
        return
    for line in _table(plan, output):
        output.note(line)
    check_space(plan)
    fetched = carry_out(output, plan, workers=workers, max_rate=rate, reread=verify)
    _say_complete(fetched, output)


def _preview(plan: DownloadPlan, output: Output) -> None:
    """Print the plan, then fail as the download would when it does not fit."""
    problem: KtopsError | None = None
    try:
        check_space(plan)
    except KtopsError as error:
        problem = error
    output.result(
        {"dry_run": True, "fits": problem is None, **plan_document(plan)},
        human=_table(plan, output),
        quiet=[item.name for item in plan.items if item.step in (Step.FETCH, Step.RESUME)],
    )
    if problem is not None:
        if output.is_json:  # one document, which says so
            raise typer.Exit(problem.exit_status)
        raise problem


def _say_complete(fetched: Fetched, output: Output) -> None:
    plan = fetched.plan
    if output.is_json:
        output.event(
            "complete",
            model=plan.name,
            folder=str(plan.root),
            bytes=plan.total_bytes,
            fetched_bytes=fetched.fetched_bytes,
            verified_bytes=fetched.verified_bytes,
            seconds=round(fetched.seconds, 3),
        )
        return
    complete = text(
        "{name} is complete in {folder}, {bytes}",
        name=plan.name,
        folder=plan.root,
        bytes=format_bytes(plan.total_bytes),
    )
    output.result({}, human=[complete, *_next(plan)], quiet=[str(plan.root)])


def _next(plan: DownloadPlan) -> list[str]:
    """How to serve it: by its name where `ktops serve` looks, which takes no --models-dir."""
    if not plan.weights:
        return []
    model = find_folder(plan.root, load_settings().models_dir)
    if model is not None:
        return [f"  ktops serve {shlex.quote(model.name)}"]
    weights = plan.root / plan.weights[0].name
    return [f"  ktops serve --gguf-path {shlex.quote(str(weights))}"]


def _table(plan: DownloadPlan, output: Output) -> list[str]:
    words = {
        Step.DONE: text("here, verified"),
        Step.CHECK: text("here, to be verified"),
        Step.FETCH: text("to fetch"),
    }
    rows = [
        (
            item.name,
            format_bytes(item.file.size),
            output.say(
                words.get(item.step)
                or text("to fetch, {bytes} here", bytes=format_bytes(item.here_bytes))
            ),
        )
        for item in plan.items
    ]
    header = [output.say(word) for word in (text("File"), text("Size"), text("State"))]
    total = text(
        "{size} ({bytes} bytes) from {hub} to {folder}: {missing} to fetch",
        size=format_bytes(plan.total_bytes),
        bytes=plan.total_bytes,
        hub=plan.hub.name,
        folder=plan.root,
        missing=format_bytes(plan.missing_bytes),
    )
    return [*output.table(rows, header, dim_columns=(2,)), total]
