"""`ktops config`: what is set, where each value comes from, and how to change it for good."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ktops.commandline import CommandSpec, output_of
from ktops.config_file import write_setting
from ktops.masking import MASK
from ktops.output import Output
from ktops.settings import (
    CONFIG_FILE,
    SECRETS,
    SETTING_NAMES,
    Settings,
    load_settings,
    parse_setting,
    read_config_text,
    setting_name,
    user_config_file,
)
from ktops_engine.errors import KtopsError
from ktops_engine.text import Text, text

COMMANDS = tuple(
    CommandSpec(name, "Commands", summary, f"ktops.commands.config:{function}")
    for name, summary, function in (
        ("show", "Show every setting, and where it comes from.", "show"),
        ("get", "Print the value of one setting.", "get"),
        ("set", "Write a setting to your configuration file.", "set_value"),
        ("unset", "Remove a setting from your configuration file.", "unset"),
        ("path", "Print where your configuration file is.", "path"),
    )
)

EXAMPLES = {
    "config": (
        ("ktops config show --origin", "what is set, and where"),
        ("ktops config set default_model r1-q4km", "what `ktops serve` serves"),
        ("ktops config unset default_model", ""),
    ),
    "show": (
        ("ktops config show", "every setting"),
        ("ktops config show --origin", "and what it was set by"),
        ("ktops config show -q", "name=value, only what is set"),
    ),
    "get": (
        ("ktops config get port", ""),
        ("ktops config get api_key", "the one way to see the key"),
    ),
    "set": (
        ("ktops config set default_model r1-q4km", ""),
        ("ktops config set models_dir /data/models", ""),
        ("ktops config set cpu_infer 65", ""),
        ("ktops config set api_key - < key.txt", "keeps it out of the history"),
    ),
    "unset": (("ktops config unset cpu_infer", "back to the default"),),
    "path": (
        ("ktops config path", ""),
        ('"${EDITOR:-vi}" "$(ktops config path)"', "edit it by hand"),
    ),
}

STANDARD_INPUT = "-"


def _complete_name(incomplete: str) -> list[str]:
    return [name for name in SETTING_NAMES if name.startswith(incomplete)]


Key = Annotated[
    str,
    typer.Argument(help="Name of the setting.", show_default=False, autocompletion=_complete_name),
]


def show(
    ctx: typer.Context,
    origin: Annotated[
        bool, typer.Option("--origin", help="Show where each value comes from.")
    ] = False,
) -> None:
    """Show every setting: flag > KTOPS_* > ./ktops.toml > your config.toml > default.

    A setting without a value is left to the plan and the engine.
    """
    settings = load_settings()
    output = output_of(ctx)
    rows = [(name, _text(_shown(settings, name)), settings.origins[name]) for name in SETTING_NAMES]
    width = 3 if origin else 2
    header = (text("Setting"), text("Value"), text("Origin"))[:width]
    output.result(
        {
            "settings": {
                name: {"value": _shown(settings, name), "origin": settings.origins[name]}
                for name in SETTING_NAMES
            }
        },
        human=output.table([row[:width] for row in rows], header, dim_columns=(2,)),
        quiet=[f"{name}={value}" for name, value, _ in rows if value],
    )


def get(ctx: typer.Context, key: Key) -> None:
    """Print the value of one setting, even of a secret one.

    Exit status: 0 it has a value, 1 it has none, 2 there is no such setting.
    """
    name = setting_name(key)
    settings = load_settings()
    value = _plain(getattr(settings, name))
    if value is None:
        raise KtopsError(
            "not-set", text("{name} has no value", name=name), f"ktops config set {name} VALUE"
        )
    lines = [str(value)]
    output_of(ctx).result(
        {"key": name, "value": value, "origin": settings.origins[name]}, human=lines, quiet=lines
    )


def set_value(
    ctx: typer.Context,
    key: Key,
    value: Annotated[
        str, typer.Argument(help="Its new value; - reads standard input.", show_default=False)
    ],
) -> None:
    """Write a setting to your configuration file.

    The value is checked first; comments and other lines stay as they are.
    """
    name = setting_name(key)
    raw = sys.stdin.read().strip() if value == STANDARD_INPUT else value
    # A relative path is meant from here; in the file it would start from the file's folder.
    parsed = parse_setting(name, raw, label=name, base=Path.cwd())
    file = user_config_file()
    changed = write_setting(file, name, parsed, secret=name in SECRETS)
    shown = MASK if name in SECRETS else _plain(parsed)
    said = text("{name} = {value} in {file}", name=name, value=shown, file=file)
    _report(output_of(ctx), name, shown, file, changed, said)


def unset(ctx: typer.Context, key: Key) -> None:
    """Remove a setting from your configuration file. It is no error when it is not there.

    A name that is no setting can be removed too, when the file holds it.
    """
    file = user_config_file()
    name = key if key in read_config_text(file)[1] else setting_name(key)
    changed = write_setting(file, name, None)
    said = text("{name} is not set in {file}", name=name, file=file)
    if changed:
        said = text("{name} removed from {file}", name=name, file=file)
    _report(output_of(ctx), name, None, file, changed, said)


def path(ctx: typer.Context) -> None:
    """Print where your configuration file is; with --json, also where a project's would be."""
    user, project = user_config_file(), Path.cwd() / CONFIG_FILE
    output_of(ctx).result(
        {
            "path": str(user),
            "exists": user.exists(),
            "project_path": str(project),
            "project_exists": project.exists(),
        },
        human=[str(user)],
        quiet=[str(user)],
    )


def _report(
    output: Output, name: str, shown: object, file: Path, changed: bool, sentence: Text
) -> None:
    """Say what was written; warn when something stronger hides it, or the rest is wrong."""
    document = {"key": name, "value": shown, "path": str(file), "changed": changed}
    output.result(document, human=[sentence])
    try:
        origin = load_settings().origins.get(name, "")
    except KtopsError as error:
        output.warn(error.message, error.hint)
        return
    if origin in os.environ:
        output.warn(
            text("{origin} also sets {name}, and wins in this shell", origin=origin, name=name),
            f"unset {origin}",
        )
    elif origin == str(Path.cwd() / CONFIG_FILE):
        output.warn(
            text("{origin} also sets {name}, and wins in this folder", origin=origin, name=name)
        )


def _shown(settings: Settings, name: str) -> str | int | None:
    value = _plain(getattr(settings, name))
    return MASK if name in SECRETS and value is not None else value


def _plain(value: object) -> str | int | None:
    return value if value is None or isinstance(value, int) else str(value)


def _text(value: str | int | None) -> str:
    return "" if value is None else str(value)
