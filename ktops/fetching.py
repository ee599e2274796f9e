"""Fetching a model: what `ktops download` and `ktops serve` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktops.download_view import DownloadView
from ktops.hub.catalogue import load_catalogue
from ktops.hub.choose import ModelChoice, choose_model
from ktops.hub.download import Listener, locked, run_plan
from ktops.hub.origin import read_origin, write_origin
from ktops.hub.planning import DownloadPlan, check_space, make_plan
from ktops.hub.rate import RateLimit
from ktops.hub.request import Request, resolve_request
from ktops.hub.sources import ELSEWHERE, plan_download
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes, format_duration, format_rate
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

DEFAULT_WORKERS = 4


@dataclass(frozen=True)
class Fetched:
    """What a download did.

    `plan` is the last one, `fetched_bytes` came from hubs and were kept, `verified_bytes` were here
    already and were read to verify them.
    """

    plan: DownloadPlan
    fetched_bytes: int
    verified_bytes: int
    seconds: float


def plan_fetch(
    settings: Settings,
    name: str,
    *,
    source: str = "auto",
    on_note: Callable[[str], None] = lambda note: None,
) -> DownloadPlan:
    """What fetching the model `name` would take: its files, total and missing bytes, and the hub.

    Asks the hubs and looks at the disk; fetches nothing but a sample. Raises KtopsError as
    `resolve_request` and `plan_download`.
    """
    request = _request(settings, name, source)
    return plan_download(request, None, on_note=on_note)


def fetch_model(
    output: Output,
    settings: Settings,
    name: str,
    *,
    source: str = "auto",
    plan: DownloadPlan | None = None,
) -> ModelChoice:
    """Make the model `name` whole where `settings` look for it, and return it ready to be served.

    Shows progress on `output`; goes on from what is here. `plan` saves asking the hubs again after
    `plan_fetch`. Raises KtopsError as `plan_fetch`, `check_space` and `run_plan`.
    """
    if plan is None:
        plan = plan_fetch(settings, name, source=source, on_note=output.note)
    if not plan.is_done:
        check_space(plan)
        carry_out(output, plan)
    return choose_model(name, settings)


def carry_out(
    output: Output,
    plan: DownloadPlan,
    *,
    workers: int = DEFAULT_WORKERS,
    max_rate: float | None = None,
    reread: bool = False,
) -> Fetched:
    """Do what `plan` says; where its hub fails, go on with the next one of `plan.others`.

    What has arrived and was verified stays, whichever hub it came from. `max_rate` is in bytes a
    second over all workers. Raises KtopsError of the last hub, "download-running" when another
    process writes to the folder.
    """
    limit = RateLimit(max_rate) if max_rate else None
    views: list[DownloadView] = []
    with locked(plan.root):
        if plan.request.origin is not None:
            write_origin(plan.root, plan.request.origin)
        for hub, following in zip((plan.hub, *plan.others), (*plan.others, None), strict=True):
            # Made again: another download may have ended between the first look and the lock.
            current = make_plan(plan.request, hub, reread=reread and not views)
            output.event("plan", **plan_document(current))
            here = current.total_bytes - current.missing_bytes
            view = DownloadView(output, current.total_bytes, here)
            views.append(view)
            try:
                with view:
                    run_plan(current, workers, _listener(view), limit)
                break
            except KtopsError as error:
                if following is None or error.code not in ELSEWHERE:
                    raise
                output.warn(
                    text("{why}; going on with {hub}", why=error.message, hub=following.name)
                )
    fetched = Fetched(
        current,
        sum(view.fetched_bytes for view in views),
        sum(view.verified_bytes for view in views),
        sum(view.elapsed_s for view in views),
    )
    _say_fetched(output, fetched)
    return fetched


def _request(settings: Settings, name: str, source: str) -> Request:
    """What `name` means: a folder that no catalogue knows is asked for where it came from."""
    folder = settings.models_dir / name
    origin = None if name in load_catalogue() else read_origin(folder)
    if origin is None:
        return resolve_request(name, settings.models_dir, source=source)
    return resolve_request(origin.model, settings.models_dir, include=origin.include, to=folder)


def plan_document(plan: DownloadPlan) -> dict[str, object]:
    """`plan` for programs."""
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


def _listener(view: DownloadView) -> Listener:
    return Listener(view.add, view.add_verified, view.file_done, view.note)


def _say_fetched(output: Output, fetched: Fetched) -> None:
    if fetched.fetched_bytes:
        output.stage(
            "fetch",
            text(
                "{bytes} in {duration}, {rate}",
                bytes=format_bytes(fetched.fetched_bytes),
                duration=format_duration(fetched.seconds),
                rate=format_rate(fetched.fetched_bytes / max(fetched.seconds, 1e-3)),
            ),
        )
