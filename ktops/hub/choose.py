"""Which model a command works on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktops.hub.catalogue import DEMO, find_entry
from ktops.hub.store import State, StoredModel, fetch_command, inspect_model, inspect_models
from ktops.settings import Settings
from ktops_engine.errors import KtopsError


@dataclass(frozen=True)
class ModelChoice:
    """A model that is on the disk. `name` is its alias, None when only a path is known; `reason`
    completes "<name>: ..."; `model_path` is the config-only folder, if any."""

    name: str | None
    reason: str
    gguf_path: Path
    model_path: Path | None


def choose_model(
    requested: str | None,
    settings: Settings,
    *,
    gguf_path: Path | None = None,
    model_path: Path | None = None,
) -> ModelChoice:
    """The model to serve.

    A path wins; then the name asked for; then the configured default; then the one model that is
    downloaded; then the demo. Raises KtopsError: "unknown-model", "model-not-downloaded",
    "model-incomplete", "no-such-path".
    """
    _check_model_path(model_path)
    if gguf_path is not None:
        if not gguf_path.exists():
            raise _no_such_path("--gguf-path", gguf_path)
        return ModelChoice(requested, "given by --gguf-path", gguf_path, model_path)
    if requested is not None:
        return _stored(requested, "named on the command line", settings, model_path)
    if settings.default_model is not None:
        reason = f"the default of {settings.origins.get('default_model', 'the settings')}"
        return _stored(settings.default_model, reason, settings, model_path)
    complete = [
        model
        for model in inspect_models(settings.models_dir)
        if model.state is State.COMPLETE and model.entry.alias != DEMO
    ]
    if len(complete) == 1:
        return _choice(complete[0], "the one model that is downloaded", model_path)
    reason = (
        "the embedded model, because nothing is downloaded yet"
        if not complete
        else f"the embedded model, because {len(complete)} are downloaded and none is the default"
    )
    return _stored(DEMO, reason, settings, model_path)


def _stored(alias: str, reason: str, settings: Settings, model_path: Path | None) -> ModelChoice:
    """The catalogue model `alias`, refused with what fetches it when it is not whole."""
    model = inspect_model(find_entry(alias), settings.models_dir)
    if model.state is State.COMPLETE:
        return _choice(model, reason, model_path)
    if model.entry.alias == DEMO:
        raise KtopsError(
            "demo-missing",
            f"the demo model is not whole in {model.folder}: {model.problem or 'no weights there'}",
            fetch_command(model.entry, settings),
        )
    hint = "\n".join(
        (
            fetch_command(model.entry, settings),
            "ktops serve --gguf-path FOLDER   (for files that lie elsewhere)",
        )
    )
    if model.state is State.INCOMPLETE:
        message = f"{alias} is not complete in {model.folder}: {model.problem}"
        raise KtopsError("model-incomplete", message, hint)
    message = f"{alias} is not downloaded: there are no weights in {model.folder}"
    raise KtopsError("model-not-downloaded", message, hint)


def _choice(model: StoredModel, reason: str, model_path: Path | None) -> ModelChoice:
    if model.gguf_path is None:
        raise ValueError(f"{model.entry.alias} is complete and has no weight file")
    return ModelChoice(model.entry.alias, reason, model.gguf_path, model_path or model.config_path)


def _check_model_path(model_path: Path | None) -> None:
    """Refuse a config-only folder that is not there; a repository's name gets its own advice."""
    if model_path is None or (model_path / "config.json").is_file():
        return
    if model_path.is_dir():
        raise KtopsError(
            "no-such-path",
            f"--model-path {model_path} has no config.json",
            "give the folder with config.json and tokenizer.json, or leave --model-path out",
        )
    parts = model_path.parts
    if len(parts) == 2 and not model_path.is_absolute() and parts[0] not in (".", "..", "~"):
        raise KtopsError(
            "no-such-path",
            f"--model-path {model_path} is no folder here; ktops reads local folders only",
            f"ktops download hf:{model_path} --to {model_path.name}",
        )
    raise _no_such_path("--model-path", model_path)


def _no_such_path(flag: str, path: Path) -> KtopsError:
    return KtopsError(
        "no-such-path", f"{flag} {path} does not exist", f"ls {path.parent}   (what is there)"
    )
