"""`ktops download`: fetch a model's weights and configuration, and prove that they are whole."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.download_view import DownloadView
from ktops.hub.catalogue import load_catalogue
from ktops.hub.download import Listener, locked, run_plan
from ktops.hub.planning import DownloadPlan, Step, check_space, make_plan
from ktops.hub.request import Request, resolve_request
from ktops.hub.sources import Source, choose_hub
from ktops.output import Output
from ktops.settings import load_settings
from ktops.units import format_bytes, format_duration, format_rate
from ktops_engine.errors import KtopsError

EXAMPLES = (
    ("ktops download r1-q4km --dry-run", "what it would fetch, and how much"),
    ("ktops download r1-q4km", "376.7 GiB; run it again to go on"),
    ("ktops download r1-q4km --verify", "read every file here once more"),
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
    source: Annotated[Source, typer.Option(help="The hub to fetch from.")] = Source.AUTO,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of the hub or of a mirror.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Files at once.")] = 4,
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
    settings = load_settings(models_dir=models_dir)
    request = resolve_request(
        model, settings.models_dir, include=tuple(include or ()), to=to, source=source
    )
    hub = choose_hub(request, endpoint, on_note=output.warn)
    if dry_run:
        _preview(make_plan(request, hub, reread=verify), output)
        return
    preview = make_plan(request, hub, reread=verify)
    for line in _table(preview, output):
        output.note(line)
    check_space(preview)
    with locked(request.root):
        # Made again: another download may have ended between the first look and the lock.
        _fetch(make_plan(request, hub, reread=verify), request, workers, output)


def _preview(plan: DownloadPlan, output: Output) -> None:
    """Print the plan, then fail as the download would when it does not fit."""
    problem: KtopsError | None = None
    try:
        check_space(plan)
    except KtopsError as error:
        problem = error
    output.result(
        {"dry_run": True, "fits": problem is None, **_document(plan)},
        human=_table(plan, output),
        quiet=_names(plan),
    )
    if problem is not None:
        if output.is_json:  # one document, which says so
            raise typer.Exit(problem.exit_status)
        raise problem


def _fetch(plan: DownloadPlan, request: Request, workers: int, output: Output) -> None:
    output.event("plan", **_document(plan))
    here = plan.total_bytes - plan.missing_bytes
    with DownloadView(output, plan.total_bytes, here) as view:
        listener = Listener(view.add, view.add_verified, view.file_done, view.note)
        run_plan(plan, workers, listener)
    if view.fetched_bytes:
        rate = format_rate(view.fetched_bytes / max(view.elapsed_s, 1e-3))
        took = format_duration(view.elapsed_s)
        output.stage("fetch", f"{format_bytes(view.fetched_bytes)} in {took}, {rate}")
    if output.is_json:
        output.event(
            "complete",
            model=plan.name,
            folder=str(plan.root),
            bytes=plan.total_bytes,
            fetched_bytes=view.fetched_bytes,
            verified_bytes=view.verified_bytes,
            seconds=round(view.elapsed_s, 3),
        )
        return
    complete = f"{plan.name} is complete in {plan.root}, {format_bytes(plan.total_bytes)}"
    output.result({}, human=[complete, *_next(plan, request)], quiet=[str(plan.root)])


def _next(plan: DownloadPlan, request: Request) -> list[str]:
    if not plan.weights:
        return []
    settings = load_settings()
    if request.name in load_catalogue() and request.root == settings.models_dir / request.name:
        return [f"  ktops serve {request.name}"]
    weights = plan.root / plan.weights[0].name
    return [f"  ktops serve --gguf-path {shlex.quote(str(weights))}"]


def _table(plan: DownloadPlan, output: Output) -> list[str]:
    words = {
        Step.DONE: "here, verified",
        Step.CHECK: "here, to be verified",
        Step.FETCH: "to fetch",
    }
    rows = [
        (
            item.name,
            format_bytes(item.file.size),
            words.get(item.step) or f"to fetch, {format_bytes(item.here_bytes)} here",
        )
        for item in plan.items
    ]
    total = f"{format_bytes(plan.total_bytes)} ({plan.total_bytes} bytes)"
    missing = f"{format_bytes(plan.missing_bytes)} to fetch"
    return [
        *output.table(rows, ("File", "Size", "State"), dim_columns=(2,)),
        f"{total} from {plan.hub.name} to {plan.root}: {missing}",
    ]


def _names(plan: DownloadPlan) -> list[str]:
    return [item.name for item in plan.items if item.step in (Step.FETCH, Step.RESUME)]


def _document(plan: DownloadPlan) -> dict[str, object]:
    return {
        "model": plan.name,
        "hub": plan.hub.name,
        "endpoint": plan.hub.endpoint,
        "folder": str(plan.root),
        "total_bytes": plan.total_bytes,
        "missing_bytes": plan.missing_bytes,
        "files": [
            {
                "name": item.name,
                "repo": item.listing.repo,
                "revision": item.listing.revision,
                "bytes": item.file.size,
                "here_bytes": item.here_bytes,
                "state": item.step,
            }
            for item in plan.items
        ],
    }
