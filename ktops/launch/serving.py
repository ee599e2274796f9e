"""What `serve` and `chat` share: from a command line to an engine that is ready to load."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ktops.launch.checklist import report_checks, start_subset
from ktops.launch.nodes import show_nodes
from ktops.launch.plan_stage import Site, checks_of, look, show_site, target_of
from ktops.launch.stages import Order, obtain, refuse_doubts, refuse_unservable
from ktops.output import Output
from ktops.settings import Settings
from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.text import text
from ktops_engine.types import SamplingParams

if TYPE_CHECKING:
    from ktops.hub.choose import ModelChoice
    from ktops.launch.progress import LoadView
    from ktops_engine.gguf import GgufModel
    from ktops_engine.llm import LLM
    from ktops_engine.machine import MachineFacts
    from ktops_engine.server import ModelHandle, ServerConfig
    from ktops_engine.source import ModelSource

_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Prepared:
    """A checked request for an engine and its server, with the `machine` and the `source` that were
    planned with; `shown_notes` were printed already."""

    engine_config: EngineConfig
    machine: MachineFacts
    source: ModelSource
    server_config: ServerConfig
    shown_notes: frozenset[str]


def prepare(
    output: Output,
    settings: Settings,
    order: Order,
    *,
    served_model_name: str | None = None,
) -> Prepared:
    """Everything before loading, as a checklist: model, fetch, build, check, plan.

    What is done already takes no time, so a command that was stopped anywhere goes on from there.
    Raises KtopsError for whatever is wrong, before anything large is read.
    """
    choice = obtain(output, settings, order)
    site = admit(output, settings, order, choice, meanwhile=_import_server)
    from ktops_engine.server import ServerConfig

    server_config = ServerConfig(
        model_id=served_model_name or choice.name or _file_name(site.source.gguf),
        root=str(choice.gguf_path),
        api_key=settings.api_key,
        max_new_tokens=settings.max_new_tokens,
        sampling=sampling_defaults(choice.model_path or site.source.gguf.paths[0].parent),
    )
    notes = frozenset(site.placement.notes)
    return Prepared(planned_config(site), site.machine, site.source, server_config, notes)


def admit(
    output: Output,
    settings: Settings,
    order: Order,
    choice: ModelChoice,
    meanwhile: Callable[[], None] = lambda: None,
    source: ModelSource | None = None,
) -> Site:
    """Check this machine and plan the model that is here, of which `source` may have been opened;
    `meanwhile` runs beside the checks.

    Raises KtopsError for whatever is wrong, before anything large is read.
    """
    site = look(settings, choice, order.dummy, source)
    ending = start_subset(checks_of(site.placement), target_of(site, settings))
    meanwhile()
    checked = ending()
    report_checks(output, checked)
    refuse_unservable(checked, site.name, site.placement.notes)
    show_site(output, site)
    refuse_doubts(checked, site.placement, order, site.name)
    return site


def planned_config(site: Site) -> EngineConfig:
    """What the engine is asked for, with the threads that the plan showed."""
    return replace(site.config, cpu_infer=site.placement.num_threads)


def _import_server() -> None:
    import ktops_engine.server  # noqa: F401 - takes as long as the checks


def load_engine(output: Output, prepared: Prepared, view: LoadView, handle: ModelHandle) -> LLM:
    """Load the engine, showing progress; ends early once `handle` is told to stop."""
    from ktops_engine.llm import LLM
    from ktops_engine.types import LoadProgress

    def on_progress(progress: LoadProgress) -> None:
        handle.check_stop()
        view.update(progress)

    def on_note(note: str) -> None:
        if note not in prepared.shown_notes:
            output.stage("note", note)

    llm = LLM.load(prepared.engine_config, on_progress, on_note, prepared.machine, prepared.source)
    show_nodes(output, llm.node_shares)
    for share in llm.node_shares:
        output.event("node", **asdict(share))
    return llm


def sampling_defaults(folder: Path) -> SamplingParams:
    """The sampling that a model's generation_config.json asks for; R1's where it says nothing.

    Raises KtopsError "invalid-generation-config" for a file that is not JSON or has other types.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return SamplingParams()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        given = {name: values[name] for name in _SAMPLING_FIELDS if values.get(name) is not None}
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in given.values()):
            raise ValueError("a sampling value is not a number")
        if values.get("do_sample") is False:
            given["temperature"] = 0.0
    except (OSError, ValueError, AttributeError) as error:
        raise KtopsError(
            "invalid-generation-config",
            text("{path} cannot be used: {reason}", path=path, reason=error),
            text("download it again, or move it away: mv {path} {path}.bad", path=path),
        ) from error
    return SamplingParams(**given)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def curl_line(url: str, model_id: str, *, with_key: bool) -> str:
    """A command to paste that asks the served model who it is; a key is named, never shown."""
    body = {"model": model_id, "messages": [{"role": "user", "content": "你是谁?"}]}
    words = json.dumps(body, ensure_ascii=False, separators=(",", ":")).replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $KTOPS_API_KEY"' if with_key else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{words}'"


def _file_name(gguf: GgufModel) -> str:
    return gguf.name or gguf.paths[0].stem
