"""`ktops models`: the models ktops knows by name, and which of them are here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.commands import model_actions
from ktops.commands.model_documents import model_document, model_lines
from ktops.hub.disk_use import disk_bytes
from ktops.hub.store import State, find_models
from ktops.output import Output
from ktops.settings import Settings, load_settings

EXAMPLES = (
    ("ktops models", "what there is, and what is here"),
    ("ktops models -q", "the names that can be served now"),
    ("KTOPS_MODELS=/data/models ktops models", ""),
    ("ktops models --json", ""),
    ("ktops models add r1-q4km /data/R1-GGUF", "files you have; nothing is copied"),
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
    ADD = "add"


def models(
    ctx: typer.Context,
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.LIST,
    model: Annotated[
        str | None, typer.Argument(help="Which one, except for list.", show_default=False)
    ] = None,
    path: Annotated[
        Path | None, typer.Argument(help="For add: weights you have.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="For add: folder with config.json.", show_default=False),
    ] = None,
    models_dir: Annotated[
        Path | None, typer.Option(help="Folder of the downloaded models.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """List the models ktops knows, their size, and whether they are whole on this disk.

    A star marks the model that `ktops serve` takes from the settings. One model can be shown,
    verified against the digests that its download recorded, or removed. Weights that lie elsewhere
    are added by a name; ktops never copies, changes or deletes them.

    A file catalogue.toml beside the settings (ktops config path) adds models to the list:
    [NAME] with weights = { repo = "OWNER/NAME", patterns = ["*Q4_K_M*"] }.
    """
    settings = load_settings(models_dir=models_dir)
    output = output_of(ctx)
    if action is not Action.ADD and (path is not None or config is not None):
        raise typer.BadParameter("only add takes a path and --config")
    if action is Action.LIST:
        if model is not None:
            raise typer.BadParameter(f"list takes no model; ktops models show {model} does")
        _list(settings, output)
    elif action is Action.ADD:
        if model is None or path is None:
            raise typer.BadParameter("add takes a name and a path")
        model_actions.add(model, path, config, settings, output)
    else:
        _act(action, model, settings, output, yes)


def _act(action: Action, model: str | None, settings: Settings, output: Output, yes: bool) -> None:
    if model is None:
        raise typer.BadParameter(f"{action} takes the name of a model")
    if action is Action.REMOVE:
        model_actions.remove(model, settings, output, yes)
        return
    stored = model_actions.find(model, settings)
    if action is Action.SHOW:
        model_actions.show(stored, settings, output)
    elif action is Action.PATH:
        model_actions.path(stored, settings, output)
    else:
        model_actions.verify(stored, settings, output)


def _list(settings: Settings, output: Output) -> None:
    found = find_models(settings.models_dir)
    used = [disk_bytes(model) for model in found]
    output.result(
        {
            "models_dir": str(settings.models_dir),
            "models": [
                model_document(model, taken, settings)
                for model, taken in zip(found, used, strict=True)
            ],
        },
        human=model_lines(found, used, settings, output),
        quiet=[model.name for model in found if model.state is State.COMPLETE],
    )
