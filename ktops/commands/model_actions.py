"""What `ktops models` does with one model: show, path, verify, remove."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ktops.download_view import DownloadView
from ktops.hub.catalogue import DEMO, find_entry
from ktops.hub.download import locked
from ktops.hub.store import State, StoredModel, fetch_command, inspect_model
from ktops.hub.verify import recorded_bytes, verify_files
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes, format_bytes_decimal
from ktops_engine.errors import EXIT_USAGE, KtopsError


def show(model: StoredModel, document: dict[str, object], output: Output) -> None:
    """Print everything that is known of one model."""
    needs = model.entry.needs
    rows = [
        ("Model", model.entry.title),
        ("State", model.state.replace("-", " ") + (f": {model.problem}" if model.problem else "")),
        ("Size", format_bytes(model.size_bytes)),
        ("On disk", format_bytes(disk_bytes(model.folder))),
        ("Folder", str(model.folder)),
        ("Weights", model.entry.weights_repo or "come with ktops"),
        ("Configuration", model.entry.config_repo or ""),
        ("Memory", f"needs {format_bytes_decimal(needs.ram_bytes)}"),
        ("GPU memory", f"needs {format_bytes_decimal(needs.vram_bytes)}"),
        ("CPU cores", f"needs {needs.cores}"),
    ]
    output.result(
        {**document, "disk_bytes": disk_bytes(model.folder)},
        human=[f"{name:<15}{value}".rstrip() for name, value in rows],
        quiet=[str(model.state)],
    )


def path(model: StoredModel, settings: Settings, output: Output) -> None:
    """Print the folder of a model that is here. Raises KtopsError "model-not-downloaded"."""
    _require_here(model, settings)
    folder = str(model.folder)
    output.result({"alias": model.entry.alias, "folder": folder}, human=[folder], quiet=[folder])


def verify(model: StoredModel, settings: Settings, output: Output) -> None:
    """Read every file of a model once more. Raises KtopsError "model-spoilt", "never-verified"."""
    _require_here(model, settings)
    alias = model.entry.alias
    fix = fetch_command(model.entry, settings)
    if alias == DEMO:
        raise KtopsError("never-verified", "the demo comes with ktops", fix)
    total = recorded_bytes(model.folder)
    with locked(model.folder), DownloadView(output, total, 0, stage="verify") as view:
        try:
            verdict = verify_files(model.folder, view.add)
        except KtopsError as error:
            raise KtopsError(error.code, error.message, f"{fix} --verify") from error
    if verdict.spoilt or verdict.missing:
        bad = [f"{name} is spoilt" for name in verdict.spoilt]
        bad += [f"{name} is missing" for name in verdict.missing]
        raise KtopsError("model-spoilt", f"{alias}: {', '.join(bad)}", fix)
    output.result(
        {"alias": alias, "files": verdict.good, "read_bytes": verdict.read_bytes},
        human=[
            f"{alias} is whole: {len(verdict.good)} files, {format_bytes(verdict.read_bytes)} read"
        ],
        quiet=[str(model.folder)],
    )


def remove(model: StoredModel, settings: Settings, output: Output, yes: bool) -> None:
    """Delete a model's folder. Raises KtopsError "not-confirmed" unless confirmed or `yes`."""
    alias, folder = model.entry.alias, model.folder
    if alias == DEMO:
        raise KtopsError(
            "nothing-to-remove",
            "the demo comes with ktops",
            "pip uninstall ktops",
            exit_status=EXIT_USAGE,
        )
    if not folder.is_dir() or folder.is_symlink():
        why = "is a symbolic link" if folder.is_symlink() else "does not exist"
        raise KtopsError("nothing-to-remove", f"{folder} {why}", f"ls -ld {folder}")
    size = disk_bytes(folder)
    if not yes and not _confirmed(output, f"Delete {folder}, {format_bytes(size)}? [y/N] "):
        raise KtopsError(
            "not-confirmed",
            f"{folder} is kept: nobody confirmed that {format_bytes(size)} are to be deleted",
            f"ktops models remove {alias} --yes",
        )
    with locked(folder):
        shutil.rmtree(folder)
    output.result(
        {"alias": alias, "folder": str(folder), "freed_bytes": size},
        human=[f"{alias} is removed, {format_bytes(size)} are free again"],
        quiet=[str(folder)],
    )


def find_model(alias: str | None, action: str, settings: Settings) -> StoredModel:
    """The model an action is about. Raises KtopsError "usage" when none is named."""
    if alias is None:
        raise KtopsError(
            "usage",
            f"ktops models {action} needs the name of a model",
            f"ktops models {action} r1-q4km",
            exit_status=EXIT_USAGE,
        )
    return inspect_model(find_entry(alias), settings.models_dir)


def disk_bytes(folder: Path) -> int:
    """Bytes of the files below `folder`, as they are allocated on the disk."""
    if not folder.is_dir():
        return 0
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*") if not file.is_dir())


def _require_here(model: StoredModel, settings: Settings) -> None:
    if model.state is State.ABSENT:
        raise KtopsError(
            "model-not-downloaded",
            f"{model.entry.alias} is not downloaded: there are no weights in {model.folder}",
            fetch_command(model.entry, settings),
        )


def _confirmed(output: Output, question: str) -> bool:
    if output.is_json or not sys.stdin.isatty():
        return False
    return output.prompt(question).strip().lower() in ("y", "yes")
