"""Completion in the shell: the scripts, and how `ktops` answers them.

A script asks `ktops` for the words that fit, with the command line in the variables of typer's
bash protocol; all three shells take that one, because typer's answers to zsh and fish import rich.
"""

from __future__ import annotations

from enum import StrEnum

COMPLETE_VARIABLE = "_KTOPS_COMPLETE"


class Shell(StrEnum):
    """A shell that ktops has a completion script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_SCRIPTS = {
    Shell.BASH: """\
_ktops() {
    local IFS=$'\\n'
    COMPREPLY=($(env _KTOPS_COMPLETE=complete_bash COMP_CWORD="$COMP_CWORD" \\
        COMP_WORDS="${COMP_WORDS[*]}" "$1" 2>/dev/null))
}
complete -o default -F _ktops ktops
""",
    Shell.ZSH: """\
#compdef ktops
_ktops() {
    local -a candidates
    candidates=(${(f)"$(env _KTOPS_COMPLETE=complete_bash COMP_CWORD=$((CURRENT - 1)) \\
        COMP_WORDS="${(j: :)words}" $words[1] 2>/dev/null)"})
    if (( $#candidates )); then
        compadd -a candidates
    else
        _files
    fi
}
if [[ $funcstack[1] == _ktops ]]; then
    _ktops "$@"
else
    compdef _ktops ktops
fi
""",
    Shell.FISH: """\
function __ktops_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l candidates (env _KTOPS_COMPLETE=complete_bash COMP_CWORD=(count $before) \\
        COMP_WORDS="$before $current" $before[1] 2>/dev/null | string match --regex '.+')
    if set -q candidates[1]
        string join \\n -- $candidates
    else
        __fish_complete_path $current
    end
end
complete --command ktops --no-files --arguments '(__ktops_complete)'
""",
}


def completion_script(shell: Shell) -> str:
    """The script that gives `shell` completion for `ktops`."""
    return _SCRIPTS[shell].rstrip("\n")


def enable_completion() -> None:
    """Let this process answer completion scripts: typer learns the shells from such an app."""
    import typer

    app = typer.Typer(add_completion=True)
    app.command()(enable_completion)
    typer.main.get_command(app)
