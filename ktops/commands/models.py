"""`ktops models`: the models ktops knows by name, and which of them are here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.commands import model_actions
from ktops.hub.catalogue import DEMO
from ktops.hub.store import State, StoredModel, fetch_command, inspect_models
from ktops.output import Output
from ktops.settings import Settings, load_settings
from ktops.units import format_bytes

EXAMPLES = (
    ("ktops models", "what there is, and what is here"),
    ("ktops models -q", "the names that can be served now"),
    ("KTOPS_MODELS=/data/models ktops models", ""),
    ("ktops models --json", ""),
    ("ktops models verify r1-q4km", "read every file, without a network"),
    ("ktops models remove r1-q4km", "asks first"),
    ("du -sh $(ktops models path r1-q4km)", ""),
)


class Action(StrEnum):
    """What to do; all but LIST are about one model."""

    LIST = "list"
    SHOW = "show"
    PATH = "path"
    VERIFY = "verify"
    REMOVE = "remove"


def models(
    ctx: typer.Context,
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.LIST,
    model: Annotated[
        str | None, typer.Argument(help="Which one, except for list.", show_default=False)
    ] = None,
    models_dir: Annotated[
        Path | None, typer.Option(help="Folder of the downloaded models.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """List the models ktops knows, their size, and whether they are whole on this disk.

    A star marks the model that `ktops serve` takes from the settings. One model can be shown,
    verified against the digests that its download recorded, or removed.
    """
    settings = load_settings(models_dir=models_dir)
    output = output_of(ctx)
    if action is Action.LIST:
        if model is not None:
            raise typer.BadParameter(f"list takes no model; ktops models show {model} does")
        _list(settings, output)
        return
    stored = model_actions.find_model(model, action, settings)
    if action is Action.SHOW:
        model_actions.show(stored, _document(stored, settings), output)
    elif action is Action.PATH:
        model_actions.path(stored, settings, output)
    elif action is Action.VERIFY:
        model_actions.verify(stored, settings, output)
    else:
        model_actions.remove(stored, settings, output, yes)


def _list(settings: Settings, output: Output) -> None:
    found = inspect_models(settings.models_dir)
    output.result(
        {
            "models_dir": str(settings.models_dir),
            "models": [_document(model, settings) for model in found],
        },
        human=_lines(found, settings, output),
        quiet=[model.entry.alias for model in found if model.state is State.COMPLETE],
    )


def _lines(found: list[StoredModel], settings: Settings, output: Output) -> list[str]:
    rows = [
        (
            ("* " if _is_default(model, settings) else "  ") + model.entry.alias,
            model.entry.title,
            format_bytes(model.size_bytes),
            model.state.replace("-", " "),
            _place(model),
        )
        for model in found
    ]
    lines = output.table(rows, ("  Name", "Model", "Size", "State", "Folder"), dim_columns=(4,))
    for model in found:
        if model.state is State.INCOMPLETE:
            lines += ["", f"{model.entry.alias} is incomplete: {model.problem}"]
            lines.append(f"  Fix: {fetch_command(model.entry, settings)}")
    return [*lines, "", f"Models are looked for in {settings.models_dir}"]


def _place(model: StoredModel) -> str:
    if model.entry.alias == DEMO:
        return "comes with ktops"
    return "" if model.state is State.ABSENT else str(model.folder)


def _document(model: StoredModel, settings: Settings) -> dict[str, object]:
    needs = model.entry.needs
    return {
        "alias": model.entry.alias,
        "title": model.entry.title,
        "state": model.state,
        "problem": model.problem or None,
        "size_bytes": model.size_bytes,
        "folder": str(model.folder),
        "gguf_path": str(model.gguf_path) if model.gguf_path else None,
        "config_path": str(model.config_path) if model.config_path else None,
        "is_default": _is_default(model, settings),
        "needs": {
            "ram_bytes": needs.ram_bytes,
            "vram_bytes": needs.vram_bytes,
            "cores": needs.cores,
            "disk_bytes": needs.disk_bytes,
        },
    }


def _is_default(model: StoredModel, settings: Settings) -> bool:
    return model.entry.alias == settings.default_model
