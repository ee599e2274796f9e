"""`ktops completion`: the script that makes the Tab key complete ktops' commands and options."""

from __future__ import annotations

from typing import Annotated

import typer

from ktops.commandline import output_of
from ktops.shell_completion import Shell, completion_script

EXAMPLES = (
    ('eval "$(ktops completion bash)"', "in ~/.bashrc"),
    ('eval "$(ktops completion zsh)"', "in ~/.zshrc, after compinit"),
    ("ktops completion fish | source", "in ~/.config/fish/config.fish"),
)


def completion(
    ctx: typer.Context,
    shell: Annotated[Shell, typer.Argument(help="The shell you type in.", show_default=False)],
) -> None:
    """Print the completion script of a shell.

    Commands, options and their values then complete with the Tab key.
    """
    script = completion_script(shell)
    output_of(ctx).result({"shell": shell, "script": script}, human=[script], quiet=[script])
