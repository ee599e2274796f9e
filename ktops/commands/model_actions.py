"""What `ktops models` does with one model: show, path, verify, add, remove."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from ktops.commands.model_documents import model_details, model_document
from ktops.download_view import DownloadView
from ktops.hub.catalogue import DEMO
from ktops.hub.choose import check_model_path, not_downloaded
from ktops.hub.digests import Ledger
from ktops.hub.disk_use import disk_bytes, model_files
from ktops.hub.download import locked
from ktops.hub.errors import write_failed
from ktops.hub.names import is_model_name
from ktops.hub.registry import (
    Registration,
    read_registration,
    registered_names,
    remove_registration,
    write_registration,
)
from ktops.hub.store import State, StoredModel, fetch_command, find_model, mend_command
from ktops.hub.verify import Verdict, record_files, recorded_bytes, verify_files
from ktops.output import Output
from ktops.settings import Settings
from ktops.units import format_bytes
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import Text, joined, text


def find(name: str, settings: Settings) -> StoredModel:
    """The model called `name`. Raises KtopsError "unknown-model"."""
    return find_model(name, settings.models_dir)


def show(model: StoredModel, settings: Settings, output: Output) -> None:
    """Print everything that is known of one model."""
    used = disk_bytes(model)
    output.result(
        model_document(model, used, settings),
        human=model_details(model, used, output),
        quiet=[str(model.state)],
    )


def path(model: StoredModel, settings: Settings, output: Output) -> None:
    """Print the folder of a model that is here. Raises KtopsError "model-not-downloaded"."""
    _require_here(model, settings)
    folder = str(model.folder)
    output.result({"alias": model.name, "folder": folder}, human=[folder], quiet=[folder])


def verify(model: StoredModel, settings: Settings, output: Output) -> None:
    """Read every file of a model once more, and compare with its recorded digests.

    A registered model has none at first: they are recorded then. Raises KtopsError "model-spoilt",
    "never-verified", "model-not-downloaded".
    """
    _require_here(model, settings)
    if model.name == DEMO:
        raise KtopsError(
            "never-verified", text("the demo comes with ktops"), mend_command(model, settings)
        )
    ledger = Ledger(model.folder, model.state_folder)
    if model.is_registered and not ledger.names():
        _record(model, ledger, output)
        return
    total = recorded_bytes(ledger, model.folder)
    view = DownloadView(output, total, 0, stage="verify")
    with locked(model.folder, model.state_folder), view:
        try:
            verdict = verify_files(
                ledger, model.folder, view.add_read, forget=not model.is_registered
            )
        except KtopsError as error:
            fix = f"{mend_command(model, settings)} --verify"
            raise KtopsError(error.code, error.message, fix) from error
    _judge(model, verdict, settings)
    sentence = text(
        "{name} is whole: {files}, {bytes} read",
        name=model.name,
        files=_files(len(verdict.good)),
        bytes=format_bytes(verdict.read_bytes),
    )
    _say_verified(model, list(verdict.good), verdict.read_bytes, sentence, output)


def add(name: str, weights: Path, config: Path | None, settings: Settings, output: Output) -> None:
    """Give weights that lie elsewhere a name. Raises KtopsError.

    "invalid-name", "name-taken", "no-such-path" (the config folder), and the codes of `open_gguf`
    for weights that are no model.
    """
    from ktops_engine.gguf import open_gguf

    _check_name(name, settings)
    gguf = open_gguf(weights.expanduser().absolute())
    if config is not None:
        config = config.expanduser().absolute()
        check_model_path(config, flag="--config")
    registration = Registration(name, gguf.paths[0], config)
    existing = read_registration(settings.models_dir, name)
    if existing not in (None, registration):
        raise _name_taken(name, f"ktops models remove {name}")
    write_registration(settings.models_dir, registration)
    model = find_model(name, settings.models_dir)
    sentence = text(
        "{name} is registered: {files}, {bytes}, which stay in {folder}",
        name=name,
        files=_files(len(gguf.paths)),
        bytes=format_bytes(gguf.total_bytes),
        folder=model.folder,
    )
    output.result(
        model_document(model, disk_bytes(model), settings),
        human=[sentence, f"  ktops serve {shlex.quote(name)}"],
        quiet=[name],
    )


def remove(name: str, settings: Settings, output: Output, yes: bool) -> None:
    """Delete a model's folder, or forget a registered one and leave its files.

    Raises KtopsError "not-confirmed" unless confirmed or `yes`, "nothing-to-remove".
    """
    if name in registered_names(settings.models_dir):
        remove_registration(settings.models_dir, name)
        sentence = text("{name} is forgotten; its files stay where they are", name=name)
        output.result(
            {"alias": name, "folder": None, "freed_bytes": 0}, human=[sentence], quiet=[name]
        )
        return
    model = find(name, settings)
    folder = model.folder
    _check_removable(model)
    size = disk_bytes(model)
    question = text("Delete {folder}, {size}? [y/N] ", folder=folder, size=format_bytes(size))
    if not yes and not output.confirm(question):
        raise KtopsError(
            "not-confirmed",
            text(
                "{folder} is kept: nobody confirmed that {size} are to be deleted",
                folder=folder,
                size=format_bytes(size),
            ),
            f"ktops models remove {name} --yes",
        )
    with locked(folder):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise write_failed(error, folder) from error
    sentence = text("{name} is removed, {size} are free again", name=name, size=format_bytes(size))
    output.result(
        {"alias": name, "folder": str(folder), "freed_bytes": size},
        human=[sentence],
        quiet=[str(folder)],
    )


def _record(model: StoredModel, ledger: Ledger, output: Output) -> None:
    """Read a registered model for the first time: later readings are compared with this one."""
    paths = model_files(model)
    total = sum(path.stat().st_size for path in paths)
    view = DownloadView(output, total, 0, stage="verify")
    with locked(model.folder, model.state_folder), view:
        try:
            record_files(ledger, model.folder, paths, view.add_read)
        except OSError as error:
            raise _unreadable(model, error) from error
    sentence = text(
        "{name}: {files} read, and the digests recorded for the next verify to compare with",
        name=model.name,
        files=_files(len(paths)),
    )
    _say_verified(model, ledger.names(), total, sentence, output)


def _say_verified(
    model: StoredModel, names: list[str], read_bytes: int, sentence: str, output: Output
) -> None:
    output.result(
        {"alias": model.name, "files": names, "read_bytes": read_bytes},
        human=[sentence],
        quiet=[str(model.folder)],
    )


def _unreadable(model: StoredModel, error: OSError) -> KtopsError:
    return KtopsError(
        "model-unreadable",
        text("{path} cannot be read: {why}", path=error.filename, why=error.strerror),
        shlex.join(["ls", "-l", str(model.folder)]),
    )


def _files(count: int) -> Text:
    return text("1 file") if count == 1 else text("{count} files", count=count)


def _judge(model: StoredModel, verdict: Verdict, settings: Settings) -> None:
    if not verdict.spoilt and not verdict.missing:
        return
    bad = [text("{file} is spoilt", file=name) for name in verdict.spoilt]
    bad += [text("{file} is missing", file=name) for name in verdict.missing]
    raise KtopsError(
        "model-spoilt",
        text("{name}: {problems}", name=model.name, problems=joined(bad)),
        mend_command(model, settings),
    )


def _check_name(name: str, settings: Settings) -> None:
    """Refuse a name that no model may have, or that another model has already."""
    if not is_model_name(name):
        raise KtopsError(
            "invalid-name",
            text("{name!r} cannot be a name: letters, digits, '.', '_' and '-'", name=name),
            "ktops models add my-model PATH",
            exit_status=EXIT_USAGE,
        )
    if name == DEMO:
        raise _name_taken(name, "ktops models")
    if (settings.models_dir / name).exists():
        raise _name_taken(name, f"ktops models show {name}")


def _name_taken(name: str, hint: str) -> KtopsError:
    return KtopsError(
        "name-taken",
        text("another model is called {name} already", name=name),
        hint,
        exit_status=EXIT_USAGE,
    )


def _check_removable(model: StoredModel) -> None:
    folder = model.folder
    if model.name == DEMO:
        raise KtopsError(
            "nothing-to-remove",
            text("the demo comes with ktops"),
            "pip uninstall ktops",
            exit_status=EXIT_USAGE,
        )
    if folder.is_symlink():
        problem = text("{folder} is a symbolic link", folder=folder)
    elif not folder.is_dir():
        problem = text("{folder} does not exist", folder=folder)
    else:
        return
    raise KtopsError("nothing-to-remove", problem, f"ls -ld {folder}")


def _require_here(model: StoredModel, settings: Settings) -> None:
    if model.state is State.ABSENT:
        raise not_downloaded(model, fetch_command(model.entry, settings))
