"""What `serve` and `chat` share: from a chosen model to an engine that is ready to load."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktops.hub.choose import ModelChoice
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes
from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.types import SamplingParams

if TYPE_CHECKING:
    from ktops.progress import LoadView
    from ktops_engine.gguf import GgufModel
    from ktops_engine.llm import LLM
    from ktops_engine.plan import Placement
    from ktops_engine.server import ModelHandle, ServerConfig

_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Prepared:
    """A checked request for an engine and its server; `shown_notes` were printed already."""

    engine_config: EngineConfig
    server_config: ServerConfig
    shown_notes: frozenset[str]


def prepare(
    output: Output,
    settings: Settings,
    choice: ModelChoice,
    *,
    served_model_name: str | None = None,
) -> Prepared:
    """Check the files, plan, say what was decided, and build the native kernels when needed.

    Raises KtopsError for whatever is wrong, before anything large is read.
    """
    from ktops_engine.gguf import open_gguf
    from ktops_engine.machine import detect_machine
    from ktops_engine.model_config import resolve_model_config
    from ktops_engine.plan import plan
    from ktops_engine.server import ServerConfig

    gguf = open_gguf(choice.gguf_path)
    model_config, _ = resolve_model_config(gguf, choice.model_path)
    engine_config = EngineConfig(
        gguf_path=choice.gguf_path,
        model_path=choice.model_path,
        cpu_infer=settings.cpu_infer,
        ctx_size=settings.ctx_size,
    )
    placement = plan(engine_config, model_config, gguf.total_bytes, detect_machine())
    for note in placement.notes:
        output.warn(note)
    output.stage("plan", plan_line(placement))
    output.event("plan", threads=placement.num_threads, bytes=placement.total_bytes)
    ensure_native(output)  # last: compiling takes longer than every check above
    server_config = ServerConfig(
        model_id=served_model_name or choice.name or _file_name(gguf),
        root=str(choice.gguf_path),
        api_key=settings.api_key,
        max_new_tokens=settings.max_new_tokens,
        sampling=sampling_defaults(choice.model_path or gguf.paths[0].parent),
    )
    return Prepared(engine_config, server_config, frozenset(placement.notes))


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

    return LLM.load(prepared.engine_config, on_progress=on_progress, on_note=on_note)


def ensure_native(output: Output) -> None:
    """Build the native library when it is missing or stale."""
    from ktops_engine.native.build import build_native, find_current

    if find_current() is None:
        output.stage("build", "the native kernels, once for this machine (up to a minute)")
        info = build_native()
        output.stage("build", f"{info.path.name} by {info.compiler}")


def plan_line(placement: Placement) -> str:
    """Where everything goes, in one line."""
    weights = format_bytes(placement.weights_bytes + placement.kv_up_bytes)
    cache = format_bytes(placement.kv_cache_bytes)
    return (
        f"CPU: {format_bytes(placement.total_bytes)} (weights {weights}, "
        f"cache {cache} for {placement.ctx_size} tokens), {placement.num_threads} threads"
    )


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
            f"{path} cannot be used: {error}",
            f"download it again, or move it away: mv {path} {path}.bad",
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
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $KTOPS_API_KEY"' if with_key else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{text}'"


def _file_name(gguf: GgufModel) -> str:
    return gguf.name or gguf.paths[0].stem
