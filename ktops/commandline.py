"""The command classes behind the typer app: lazy commands, common options, plain grouped help.

Nothing here knows what a command does. Help is written without rich, which keeps `ktops --help`
fast, and ends with examples.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ktops.language import Language, language_of_environment
from ktops.output import Mode, Output
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

HELP_WIDTH = 80
EXAMPLE_COLUMN = 40  # a longer command has its meaning on the line below
CONTEXT_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    # Underscores in option names are accepted everywhere: --cpu_infer is --cpu-infer.
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": HELP_WIDTH,
}

Example = tuple[str, str]


@dataclass(frozen=True)
class CommandSpec:
    """A command that is imported only when it is used.

    `target` reads "module:function"; the module's EXAMPLES close the command's help. A target that
    is a tuple of specs makes a group, its summary the first line of its help.
    """

    name: str
    panel: str
    summary: str
    target: str


def output_of(ctx: typer.Context) -> Output:
    """The output that the common options of this invocation chose."""
    output = ctx.obj
    if not isinstance(output, Output):
        raise TypeError("this command runs outside ktops' command classes")
    return output


class _CommonOptions:
    """Mixed into a command: takes the common options, and gives it an Output as `ctx.obj`."""

    def get_params(self, ctx: Any) -> list[Any]:
        *own, help_option = super().get_params(ctx)  # type: ignore[misc]
        return [*own, *_common_params(), help_option]

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option.default = False  # a None is sent through pydantic, which takes 0.1 s to import
        return option

    def invoke(self, ctx: Any) -> Any:
        ctx.obj = _take_output(ctx)
        return super().invoke(ctx)  # type: ignore[misc]


class KtopsCommand(_CommonOptions, TyperCommand):
    """One command of ktops."""

    examples: Sequence[Example] = ()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_params(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.examples)


class LazyGroup(_CommonOptions, TyperGroup):
    """A command with commands below it: knows them by their specs, imports the one asked for."""

    def __init__(
        self,
        specs: Sequence[CommandSpec],
        *,
        examples: Sequence[Example],
        exit_codes: str = "",
        **attrs: Any,
    ) -> None:
        super().__init__(context_settings=CONTEXT_SETTINGS, rich_markup_mode=None, **attrs)
        self.specs = {spec.name: spec for spec in specs}
        self.examples = examples
        self.exit_codes = exit_codes

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = not args and not ctx.resilient_parsing
        return super().parse_args(ctx, ["--help"] if bare else args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.specs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        spec = self.specs.get(cmd_name)
        return _load_command(spec) if spec else None

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from typer._click.shell_completion import CompletionItem

        # TyperGroup's own would import every command to ask for its help.
        names = [
            CompletionItem(spec.name, help=spec.summary)
            for spec in self.specs.values()
            if spec.name.startswith(incomplete)
        ]
        return names + super(TyperGroup, self).shell_complete(ctx, incomplete)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in self.specs or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        close = get_close_matches(name, self.specs, n=1, cutoff=0.5)
        guess = text("; did you mean {name!r}?", name=close[0]) if close else ""
        message = text(
            "{path} has no command {name!r}{guess}", path=ctx.command_path, name=name, guess=guess
        )
        raise KtopsError(
            "unknown-command",
            message,
            " ".join([ctx.command_path, *close, "--help"]),
            exit_status=EXIT_USAGE,
        )

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.specs))
        for spec in self.specs.values():
            row = (f"{spec.name:<{width}}", spec.summary)
            panels.setdefault(spec.panel, []).append(row)
        for panel, rows in panels.items():
            _write_section(formatter, panel, rows)
        _write_params(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.examples)
        if self.exit_codes:
            _write_heading(formatter, "Exit codes")
        for line in self.exit_codes.splitlines():
            formatter.write(f"  {line}\n")


def _load_command(spec: CommandSpec) -> KtopsCommand | LazyGroup:
    module_name, target_name = spec.target.split(":")
    module = importlib.import_module(module_name)
    target = getattr(module, target_name)
    if isinstance(target, tuple):
        return LazyGroup(
            target, examples=_examples(module, spec), name=spec.name, help=spec.summary
        )
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(spec.name, cls=KtopsCommand, context_settings=CONTEXT_SETTINGS)(target)
    command = typer.main.get_command(app)
    if not isinstance(command, KtopsCommand):
        raise TypeError(f"{spec.target} is not a command")
    command.examples = _examples(module, spec)
    return command


def _examples(module: Any, spec: CommandSpec) -> Sequence[Example]:
    """The examples of a command; a module of several commands holds them by name."""
    examples: Sequence[Example] | dict[str, Sequence[Example]] = module.EXAMPLES
    return examples[spec.name] if isinstance(examples, dict) else examples


def _common_options(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only what a script needs.")
    ] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Print no colours.")] = False,
    lang: Annotated[
        Language | None,
        typer.Option(help="Language of messages; default: KTOPS_LANG, LANG.", show_default=False),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The options every command takes; only their declarations are used."""


@cache
def _common_params() -> tuple[Any, ...]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(_common_options)
    params = tuple(typer.main.get_command(app).params)
    for param in params:
        _leave_none_alone(param)
    return params


def _leave_none_alone(param: Any) -> None:
    """What was not given needs no conversion: that would import pydantic, which takes 0.1 s."""
    convert = param.process_value
    param.process_value = lambda ctx, value: None if value is None else convert(ctx, value)


def _take_output(ctx: Any) -> Output:
    """Move the common options out of the command's parameters, joined with those of `ktops`."""
    given = {param.name: ctx.params.pop(param.name, None) for param in _common_params()}
    outer = ctx.parent.obj if ctx.parent is not None else None
    if outer is None:
        outer = Output(language=language_of_environment(os.environ))
    mode = outer.mode
    if given["json"]:
        mode = Mode.JSON
    elif given["quiet"] and mode is Mode.HUMAN:
        mode = Mode.QUIET
    return Output(
        mode=mode,
        no_color=outer.no_color or bool(given["no_color"]),
        language=Language(given["lang"] or outer.language),
    )


def _write_params(command: Any, ctx: Any, formatter: Any) -> None:
    """Write arguments, the command's own options, then the common ones."""
    common = {id(param) for param in _common_params()}
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Everywhere": []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        if param.param_type_name == "argument":
            sections["Arguments"].append(record)
        elif id(param) in common or "--help" in param.opts:
            sections["Everywhere"].append(record)
        else:
            sections["Options"].append(record)
    for heading, rows in sections.items():
        _write_section(formatter, heading, rows)


def _write_section(formatter: Any, heading: str, rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    _write_heading(formatter, heading)
    with formatter.indentation():
        formatter.write_dl(rows)


def _write_examples(formatter: Any, examples: Sequence[Example]) -> None:
    """Write commands with what each does: beside it, or below it when the line would be long."""
    _write_heading(formatter, "Examples")
    width = max(len(command) for command, meaning in examples if _fits(command, meaning))
    for command, meaning in examples:
        if _fits(command, meaning):
            line = f"  {command:<{width}}  {meaning}".rstrip()
            formatter.write(line + "\n")
        else:
            formatter.write(f"  {command}\n      {meaning}\n")


def _fits(command: str, meaning: str) -> bool:
    return len(command) <= EXAMPLE_COLUMN and EXAMPLE_COLUMN + 4 + len(meaning) <= HELP_WIDTH


def _write_heading(formatter: Any, heading: str) -> None:
    formatter.write_paragraph()
    formatter.write(Output().style(f"{heading}:", "bold", stream=sys.stdout) + "\n")
