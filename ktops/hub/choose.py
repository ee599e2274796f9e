"""Which model a command works on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktops.hub.catalogue import DEMO
from ktops.hub.store import (
    State,
    StoredModel,
    fetch_command,
    find_model,
    find_models,
    mend_command,
)
from ktops.settings import Settings
from ktops_engine.errors import KtopsError
from ktops_engine.text import joined, text


@dataclass(frozen=True)
class ModelChoice:
    """A model that is on the disk. `name` is its alias, None when only a path is known; `reason`
    completes "<name>: ..."; `model_path` is the config-only folder, if any.

    With `is_here` False only the shapes of `name` are known, and the files are the demo's.
    """

    name: str | None
    reason: str
    gguf_path: Path
    model_path: Path | None
    is_here: bool = True


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
    check_model_path(model_path)
    if gguf_path is not None:
        if not gguf_path.exists():
            raise _no_such_path("--gguf-path", gguf_path)
        return ModelChoice(requested, text("given by --gguf-path"), gguf_path, model_path)
    if requested is not None:
        return _stored(requested, text("named on the command line"), settings, model_path)
    if settings.default_model is not None:
        origin = settings.origins.get("default_model", "config.toml")
        reason = text("the default of {origin}", origin=origin)
        return _stored(settings.default_model, reason, settings, model_path)
    complete = [
        model
        for model in find_models(settings.models_dir)
        if model.state is State.COMPLETE and model.name != DEMO
    ]
    if len(complete) == 1:
        return _choice(complete[0], text("the one model that is downloaded"), model_path)
    if complete:
        reason = text(
            "the embedded model, because {count} are downloaded and none is the default",
            count=len(complete),
        )
    else:
        reason = text("the embedded model, because nothing is downloaded yet")
    return _stored(DEMO, reason, settings, model_path)


def _stored(name: str, reason: str, settings: Settings, model_path: Path | None) -> ModelChoice:
    """The model `name` as it lies here, refused with what fetches it when it is not whole."""
    model = find_model(name, settings.models_dir)
    if model.state is State.COMPLETE:
        return _choice(model, reason, model_path)
    if name == DEMO:
        raise KtopsError(
            "demo-missing",
            text(
                "the demo model is not whole in {folder}: {problem}",
                folder=model.folder,
                problem=model.problem or text("no weights there"),
            ),
            fetch_command(model.entry, settings),
        )
    elsewhere = text("ktops serve --gguf-path FOLDER   (for files that lie elsewhere)")
    hint = joined([mend_command(model, settings), elsewhere], "\n")
    if model.state is State.INCOMPLETE:
        message = text(
            "{name} is not complete in {folder}: {problem}",
            name=name,
            folder=model.folder,
            problem=model.problem,
        )
        raise KtopsError("model-incomplete", message, hint)
    raise not_downloaded(model, hint)


def not_downloaded(model: StoredModel, hint: str) -> KtopsError:
    """Nothing of `model` is here."""
    message = text(
        "{name} is not downloaded: there are no weights in {folder}",
        name=model.name,
        folder=model.folder,
    )
    return KtopsError("model-not-downloaded", message, hint)


def _choice(model: StoredModel, reason: str, model_path: Path | None) -> ModelChoice:
    if model.gguf_path is None:
        raise ValueError(f"{model.name} is complete and has no weight file")
    return ModelChoice(model.name, reason, model.gguf_path, model_path or model.config_path)


def check_model_path(model_path: Path | None, flag: str = "--model-path") -> None:
    """Refuse a config-only folder that is not there; a repository's name gets its own advice."""
    if model_path is None or (model_path / "config.json").is_file():
        return
    if model_path.is_dir():
        raise KtopsError(
            "no-such-path",
            text("{flag} {path} has no config.json", flag=flag, path=model_path),
            text(
                "give the folder with config.json and tokenizer.json, or leave {flag} out",
                flag=flag,
            ),
        )
    parts = model_path.parts
    if len(parts) == 2 and not model_path.is_absolute() and parts[0] not in (".", "..", "~"):
        raise KtopsError(
            "no-such-path",
            text(
                "{flag} {path} is no folder here; ktops reads local folders only",
                flag=flag,
                path=model_path,
            ),
            f"ktops download hf:{model_path} --to {model_path.name}",
        )
    raise _no_such_path(flag, model_path)


def _no_such_path(flag: str, path: Path) -> KtopsError:
    return KtopsError(
        "no-such-path",
        text("{flag} {path} does not exist", flag=flag, path=path),
        text("ls {folder}   (what is there)", folder=path.parent),
    )
