"""The models that are here: whose files they are, where they lie, and whether they are whole.

A model of the catalogue lives in `<models_dir>/<alias>/`, its weight files there or in a folder
below, its config-only folder (config.json, tokenizer.json, ...) in `<models_dir>/<alias>/config/`.
Any other folder there with weights is a model by the folder's name. A registered model lies where
the user has it; a registered alias of the catalogue is that model, elsewhere. The demo model ships
inside the package.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from ktops.hub.catalogue import (
    DEMO,
    CatalogueEntry,
    load_catalogue,
    local_entry,
    unknown_model,
)
from ktops.hub.digests import STATE_FOLDER
from ktops.hub.names import is_model_name
from ktops.hub.origin import read_origin
from ktops.hub.registry import (
    Registration,
    read_registration,
    registered_names,
    registration_folder,
)
from ktops.settings import Settings
from ktops_engine.errors import KtopsError
from ktops_engine.gguf.shards import ShardName
from ktops_engine.text import text

CONFIG_FOLDER = "config"


class State(StrEnum):
    """COMPLETE: the weights open; INCOMPLETE: something is there and does not; ABSENT: nothing."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    ABSENT = "not-downloaded"


@dataclass(frozen=True)
class StoredModel:
    """A model as the disk has it.

    `folder` is where its files belong, `gguf_path` a weight file when there is one, `config_path`
    the config-only folder when it has a config.json, `problem` what is wrong when incomplete.
    `size_bytes` counts the tensors of a complete model, else what the catalogue says (0 where it
    does not). `state_folder` is where ktops keeps its notes; `is_registered` says that the files
    are the user's own, to be left alone.
    """

    entry: CatalogueEntry
    folder: Path
    state: State
    size_bytes: int
    state_folder: Path
    gguf_path: Path | None = None
    config_path: Path | None = None
    problem: str = ""
    is_registered: bool = False

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.entry.alias


def find_models(models_dir: Path) -> list[StoredModel]:
    """Every model of the catalogue in its order, then what else is here, by name."""
    found = (_inspect(name, models_dir) for name in _names(models_dir))
    return [model for model in found if model is not None]


def find_model(name: str, models_dir: Path) -> StoredModel:
    """The model called `name`: of the catalogue, registered, or a folder of `models_dir`.

    Raises KtopsError "unknown-model", with the closest name.
    """
    model = _inspect(name, models_dir)
    if model is None:
        raise unknown_model(name, _names(models_dir))
    return model


def entry_of(name: str, models_dir: Path) -> CatalogueEntry:
    """The entry of the model called `name`, without opening files where a catalogue has it.

    Raises KtopsError "unknown-model", with the closest name.
    """
    return load_catalogue().get(name) or find_model(name, models_dir).entry


def weights_of(entry: CatalogueEntry, models_dir: Path) -> Path | None:
    """A weight file of `entry`, None when there is none here. Opens no file."""
    if entry.alias == DEMO:
        return next(iter(_weight_files(_demo_folder())), None)
    registration = read_registration(models_dir, entry.alias)
    if registration is not None:
        return registration.weights
    return _choose_weights(entry, models_dir / entry.alias)


def find_folder(folder: Path, models_dir: Path) -> StoredModel | None:
    """The model whose files lie in `folder`, None when no name leads there."""
    names = (name for name in _names(models_dir) if _folder_of(name, models_dir) == folder)
    return next((model for name in names if (model := _inspect(name, models_dir))), None)


def inspect_model(entry: CatalogueEntry, models_dir: Path) -> StoredModel:
    """What of `entry` is on the disk. Opens the headers of its weights; reads no tensor."""
    if entry.alias == DEMO:
        return _inspect_folder(entry, _demo_folder())
    registration = read_registration(models_dir, entry.alias)
    if registration is not None:
        return _inspect_registered(entry, registration, models_dir)
    return _inspect_folder(entry, models_dir / entry.alias)


def fetch_command(entry: CatalogueEntry, settings: Settings) -> str:
    """The shell command that makes `entry` whole where these settings look for it."""
    if entry.alias == DEMO:
        return "pip install --force-reinstall --no-deps ktops"
    command = ["ktops", "download", *entry.download_args]
    if settings.origins.get("models_dir") == "--models-dir":
        command += ["--models-dir", str(settings.models_dir)]
    return shlex.join(command)


def mend_command(model: StoredModel, settings: Settings) -> str:
    """The command to run for a model that is not whole; what was not downloaded, one looks at."""
    if model.is_registered or not (model.entry.download_args or model.name == DEMO):
        return shlex.join(["ls", "-l", str(model.folder)])
    return fetch_command(model.entry, settings)


def _names(models_dir: Path) -> list[str]:
    """Every model of the catalogue in its order, then what else is here. Opens no file."""
    catalogue = load_catalogue()
    others = {*registered_names(models_dir), *_folders(models_dir)} - set(catalogue)
    return [*catalogue, *sorted(others)]


def _folder_of(name: str, models_dir: Path) -> Path:
    """Where the files of the model `name` belong. Opens no weights."""
    if name == DEMO:
        return _demo_folder()
    registration = read_registration(models_dir, name)
    return registration.weights.parent if registration is not None else models_dir / name


def _inspect(name: str, models_dir: Path) -> StoredModel | None:
    """The model `name` as the disk has it, None when no catalogue knows it and it is not here."""
    entry = load_catalogue().get(name)
    return inspect_model(entry, models_dir) if entry is not None else _local(name, models_dir)


def _local(name: str, models_dir: Path) -> StoredModel | None:
    """The model `name` that no catalogue knows, None when it is not here either."""
    if not is_model_name(name):
        return None
    registration = read_registration(models_dir, name)
    if registration is not None:
        return _inspect_registered(local_entry(name, name, 0), registration, models_dir)
    folder = models_dir / name
    if _holds_weights(folder):
        origin = read_origin(folder)
        download_args = origin.download_args(folder) if origin else ()
        return _inspect_folder(local_entry(name, name, 0, download_args), folder)
    return None


def _folders(models_dir: Path) -> list[str]:
    """Names of the folders that hold weights."""
    if not models_dir.is_dir():
        return []
    return [
        path.name
        for path in models_dir.iterdir()
        if is_model_name(path.name) and _holds_weights(path)
    ]


def _holds_weights(folder: Path) -> bool:
    """Whether weights lie in `folder`, whole or on their way."""
    return folder.is_dir() and (bool(_weight_files(folder)) or _has_partial_files(folder))


def _inspect_folder(entry: CatalogueEntry, folder: Path) -> StoredModel:
    weights = _choose_weights(entry, folder)
    size_bytes = 0
    problem = ""
    if weights is not None:
        entry, size_bytes, problem = _open(entry, weights)
        count = len({_model_of(path) for path in _weight_files(folder)})
        if count > 1 and not entry.patterns:  # nothing says which one is meant
            problem = text(
                "it holds {count} models; give the one that is meant a name: {command}",
                count=count,
                command=f"ktops models add NAME {weights}",
            )
    elif _has_partial_files(folder):
        problem = text("a download was started, no weight file is finished")
    return StoredModel(
        entry=entry,
        folder=folder,
        state=State.INCOMPLETE if problem else State.COMPLETE if weights else State.ABSENT,
        size_bytes=size_bytes or entry.needs.disk_bytes,
        state_folder=folder / STATE_FOLDER,
        gguf_path=weights,
        config_path=_config_folder(folder / CONFIG_FOLDER, folder),
        problem=problem,
    )


def _choose_weights(entry: CatalogueEntry, folder: Path) -> Path | None:
    """The first weight file; a folder may hold more than the catalogue asks for."""
    shards = _weight_files(folder)
    chosen = [path for path in shards if _matches(path.relative_to(folder), entry.patterns)]
    return next(iter(chosen or shards), None)


def _inspect_registered(
    entry: CatalogueEntry, registration: Registration, models_dir: Path
) -> StoredModel:
    entry, size_bytes, problem = _open(entry, registration.weights)
    folder = registration.weights.parent
    return StoredModel(
        entry=entry,
        folder=folder,
        state=State.INCOMPLETE if problem else State.COMPLETE,
        size_bytes=size_bytes or entry.needs.disk_bytes,
        state_folder=registration_folder(models_dir, entry.alias),
        gguf_path=registration.weights,
        config_path=registration.config or _config_folder(folder / CONFIG_FOLDER, folder),
        problem=problem,
        is_registered=True,
    )


def _open(entry: CatalogueEntry, shard: Path) -> tuple[CatalogueEntry, int, str]:
    """Bytes of tensor data behind `shard`, or 0 and what is wrong with it.

    An entry of no catalogue comes back with what the headers say of title and size.
    """
    from ktops_engine.gguf import open_gguf

    try:
        gguf = open_gguf(shard)
    except KtopsError as error:
        return entry, 0, error.message
    if entry.weights_repo is None and entry.alias != DEMO:
        title = gguf.name or entry.title
        entry = local_entry(entry.alias, title, gguf.total_bytes, entry.download_args)
    return entry, gguf.total_bytes, ""


def _model_of(path: Path) -> tuple[Path, str]:
    """What the shards of one model share."""
    shard = ShardName.parse(path.name)
    return path.parent, shard.prefix if shard else path.name


def _config_folder(*folders: Path) -> Path | None:
    return next((path for path in folders if (path / "config.json").is_file()), None)


def _weight_files(folder: Path) -> list[Path]:
    found = folder.rglob("*.gguf")
    return sorted(path for path in found if ".cache" not in path.relative_to(folder).parts)


def _has_partial_files(folder: Path) -> bool:
    return any(folder.rglob("*.incomplete"))


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path.as_posix(), pattern) for pattern in patterns)


def _demo_folder() -> Path:
    from ktops_engine.demo import demo_path

    return demo_path()
