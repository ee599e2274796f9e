"""Models whose files lie elsewhere: a name for them, and nothing copied or touched.

`<models_dir>/.registered/<name>/model.toml` says where the files are; what ktops learns about them
(digests) stands beside it, so that the user's own folder stays as it is.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ktops.hub.errors import write_failed
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

REGISTRY_FOLDER = ".registered"
_FILE = "model.toml"


@dataclass(frozen=True)
class Registration:
    """The files of `name`: `weights` is its first shard, `config` its config-only folder."""

    name: str
    weights: Path
    config: Path | None


def registration_folder(models_dir: Path, name: str) -> Path:
    """Where ktops keeps what it knows of the registered model `name`."""
    return models_dir / REGISTRY_FOLDER / name


def read_registration(models_dir: Path, name: str) -> Registration | None:
    """The registration of `name`, None when there is none.

    Raises KtopsError "invalid-registration" for a file that ktops did not write like this.
    """
    path = registration_folder(models_dir, name) / _FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        config = values.get("config")
        return Registration(name, Path(values["weights"]), Path(config) if config else None)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KtopsError(
            "invalid-registration",
            text("{path} cannot be read: {why}", path=path, why=error),
            f"ktops models remove {name}",
        ) from error


def registered_names(models_dir: Path) -> list[str]:
    """The names that are registered, sorted."""
    return sorted(path.parent.name for path in (models_dir / REGISTRY_FOLDER).glob(f"*/{_FILE}"))


def write_registration(models_dir: Path, registration: Registration) -> None:
    """Remember `registration`. Raises KtopsError "write-failed"."""
    folder = registration_folder(models_dir, registration.name)
    lines = [f"weights = {_toml(registration.weights)}"]
    if registration.config is not None:
        lines.append(f"config = {_toml(registration.config)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_FILE}.tmp"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(folder / _FILE)
    except (OSError, UnicodeEncodeError) as error:
        failed = error if isinstance(error, OSError) else OSError(str(error))
        raise write_failed(failed, models_dir) from error


def remove_registration(models_dir: Path, name: str) -> None:
    """Forget `name`; the files it stands for are not touched. Raises KtopsError "write-failed"."""
    try:
        shutil.rmtree(registration_folder(models_dir, name))
    except OSError as error:
        raise write_failed(error, models_dir) from error


def _toml(path: Path) -> str:
    """A path as a TOML string: JSON's escapes, and DEL, which JSON leaves as it is."""
    return json.dumps(str(path), ensure_ascii=False).replace("\x7f", "\\u007f")
