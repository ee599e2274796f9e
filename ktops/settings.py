"""The user's settings: flag > KTOPS_* > ./ktops.toml > XDG config > default, resolved once.

`resolve_settings` is a function of what it is given (flags, environment, two folders), so that
every rule is tested without touching the process. Each value remembers where it came from.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from ktops.setting_values import (
    ALL,
    UnfitError,
    integer,
    integer_or_auto,
    read_memory,
    read_numa,
    read_path,
    read_words,
)
from ktops.units import parse_amount
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.nodes import NumaMode
from ktops_engine.text import text

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 10002
CONFIG_FILE = "ktops.toml"
USER_CONFIG_FILE = "config.toml"
ORIGIN_DEFAULT = "default"
ALL_GPU_MEMORY = 1 << 60  # more than there is


@dataclass(frozen=True)
class Settings:
    """What the user asked for, after precedence. None means: let the engine or the plan decide.

    `cpu_infer` is a number of CPU threads or "auto", `numa` is what `EngineConfig` says, `ctx_size`
    and `max_new_tokens` are tokens, `gpu_memory` is an amount ("40GiB") or "all", `gpu_experts` a
    number or "auto". `origins` maps each name to a flag, an environment variable, a file, or
    "default".
    """

    models_dir: Path
    default_model: str | None = None
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    cpu_infer: int | str | None = None
    gpu_memory: str | None = None
    gpu_experts: int | str | None = None
    numa: NumaMode = "auto"
    ctx_size: int | None = None
    max_new_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpu_threads(self) -> int | None:
        """`cpu_infer` as a number, None for "auto" as for nothing."""
        return self.cpu_infer if isinstance(self.cpu_infer, int) else None

    @property
    def gpu_memory_bytes(self) -> int | None:
        """`gpu_memory` as bytes on each GPU, None for nothing."""
        if self.gpu_memory is None:
            return None
        return ALL_GPU_MEMORY if self.gpu_memory == ALL else int(parse_amount(self.gpu_memory) or 0)

    @property
    def most_gpu_experts(self) -> int | None:
        """`gpu_experts` as a number, None for "auto" as for nothing."""
        return self.gpu_experts if isinstance(self.gpu_experts, int) else None


@dataclass(frozen=True)
class _Setting:
    """One setting: its name in a file, its environment variable, and how a raw value is read.

    `parse(raw, base)` raises UnfitError; `base` is the folder a relative path starts from.
    """

    name: str
    variable: str
    parse: Callable[[object, Path], object]


_SETTINGS = (
    _Setting("default_model", "KTOPS_DEFAULT_MODEL", read_words),
    _Setting("models_dir", "KTOPS_MODELS", read_path),
    _Setting("host", "KTOPS_HOST", read_words),
    _Setting("port", "KTOPS_PORT", integer(0, 65535)),
    _Setting("cpu_infer", "KTOPS_CPU_INFER", integer_or_auto(1)),
    _Setting("numa", "KTOPS_NUMA", read_numa),
    _Setting("gpu_memory", "KTOPS_GPU_MEMORY", read_memory),
    _Setting("gpu_experts", "KTOPS_GPU_EXPERTS", integer_or_auto(0)),
    _Setting("ctx_size", "KTOPS_CTX_SIZE", integer(1)),
    _Setting("max_new_tokens", "KTOPS_MAX_NEW_TOKENS", integer(1)),
    _Setting("api_key", "KTOPS_API_KEY", read_words),
)
SETTING_NAMES = tuple(setting.name for setting in _SETTINGS)
SECRETS = frozenset({"api_key"})  # never printed, unless asked for by name


def user_config_file() -> Path:
    """The user's configuration file, whether it exists or not."""
    return _user_folder("config", ".config") / USER_CONFIG_FILE


def _user_folder(kind: str, below_home: str) -> Path:
    """ktops' folder for "config" or "data". The doctor also runs where platformdirs is missing: by
    the XDG rule, which is what platformdirs follows on Linux."""
    try:
        import platformdirs
    except ImportError:
        base = os.environ.get(f"XDG_{kind.upper()}_HOME") or Path.home() / below_home
        return Path(base) / "ktops"
    find = {"config": platformdirs.user_config_path, "data": platformdirs.user_data_path}
    return find[kind]("ktops")


def setting_name(given: str) -> str:
    """The setting that `given` names, with dashes or underscores.

    Raises KtopsError "unknown-setting", with the one that was probably meant.
    """
    name = given.replace("-", "_")
    if name in SETTING_NAMES:
        return name
    raise KtopsError(
        "unknown-setting",
        text("ktops has no setting {given!r}{guess}", given=given, guess=_guess(given)),
        "ktops config show",
        exit_status=EXIT_USAGE,
    )


def parse_setting(name: str, raw: object, *, label: str, base: Path) -> object:
    """The value of a setting as `Settings` holds it; a relative path starts from `base`.

    Raises KtopsError "invalid-setting" (wrong type or range), its message starting with `label`.
    """
    (setting,) = (setting for setting in _SETTINGS if setting.name == name)
    return _parse(setting, raw, label, base, f"ktops config set {name} VALUE")


def load_settings(**flags: object) -> Settings:
    """Settings of this process: its environment, its folder, the user's configuration folder.

    A flag that is None was not given. Raises KtopsError as `resolve_settings` does.
    """
    return resolve_settings(
        flags,
        environ=os.environ,
        folder=Path.cwd(),
        config_dir=user_config_file().parent,
        data_dir=_user_folder("data", ".local/share"),
    )


def resolve_settings(
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str],
    folder: Path,
    config_dir: Path,
    data_dir: Path,
) -> Settings:
    """Settings from every source, the strongest first.

    `folder` holds ktops.toml and anchors relative paths of flags and variables, `config_dir` holds
    config.toml, `data_dir` holds the models folder when no setting names one. Raises KtopsError
    "invalid-config" (bad TOML, unknown key) or "invalid-setting" (wrong type or range), naming the
    file and key, the variable or the flag.
    """
    files = [_read_config(path) for path in (folder / CONFIG_FILE, config_dir / USER_CONFIG_FILE)]
    values: dict[str, object] = {"models_dir": data_dir / "models"}
    origins = {setting.name: ORIGIN_DEFAULT for setting in _SETTINGS}
    for setting in _SETTINGS:
        found = _lookup(setting, flags, environ, files)
        if found is None:
            continue
        raw, origin, label, base = found
        hint = text("change {label}", label=label)
        values[setting.name] = _parse(setting, raw, label, base or folder, hint)
        origins[setting.name] = origin
    return Settings(origins=MappingProxyType(origins), **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _ConfigFile:
    path: Path
    values: Mapping[str, object]


def _lookup(
    setting: _Setting,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    files: list[_ConfigFile],
) -> tuple[object, str, str, Path | None] | None:
    """The strongest raw value with its origin, a label for messages and the folder it is from."""
    if flags.get(setting.name) is not None:
        flag = "--" + setting.name.replace("_", "-")
        return flags[setting.name], flag, flag, None
    if environ.get(setting.variable):
        return environ[setting.variable], setting.variable, setting.variable, None
    for file in files:
        if setting.name in file.values:
            label = text("{name} in {file}", name=setting.name, file=file.path)
            return file.values[setting.name], str(file.path), label, file.path.parent
    return None


def _parse(setting: _Setting, raw: object, label: str, base: Path, hint: str) -> object:
    try:
        return setting.parse(raw, base)
    except UnfitError as error:
        message = text(
            "{label} is {raw!r}: it must be {wanted}", label=label, raw=raw, wanted=error.wanted
        )
        if setting.name in SECRETS:
            message = text("{label} must be {wanted}", label=label, wanted=error.wanted)
        raise KtopsError("invalid-setting", message, hint, exit_status=EXIT_USAGE) from error


def read_config_text(path: Path) -> tuple[str, dict[str, object]]:
    """A configuration file as text and as values; a file that does not exist is empty.

    Raises KtopsError "invalid-config" when it cannot be read or is not TOML.
    """
    try:
        content = path.read_bytes().decode("utf-8")
        return content, tomllib.loads(content)
    except (FileNotFoundError, NotADirectoryError):
        return "", {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KtopsError(
            "invalid-config",
            text("{path} is not valid TOML: {error}", path=path, error=error),
            text("correct that place in {path}, or move the file away", path=path),
            exit_status=EXIT_USAGE,
        ) from error
    except OSError as error:
        raise KtopsError(
            "invalid-config",
            text("{path} cannot be read: {reason}", path=path, reason=error.strerror),
            f"ls -l {path}",
            exit_status=EXIT_USAGE,
        ) from error


def _read_config(path: Path) -> _ConfigFile:
    _, values = read_config_text(path)
    for key in values:
        if key not in SETTING_NAMES:
            raise KtopsError(
                "invalid-config",
                text(
                    "{path} sets {key!r}, which is no setting of ktops{guess}",
                    path=path,
                    key=key,
                    guess=_guess(key),
                ),
                text(
                    "rename or remove {key!r} in {path}; the settings are {names}",
                    key=key,
                    path=path,
                    names=", ".join(SETTING_NAMES),
                ),
                exit_status=EXIT_USAGE,
            )
    return _ConfigFile(path, values)


def _guess(key: str) -> str:
    close = get_close_matches(key.replace("-", "_"), SETTING_NAMES, n=1)
    return text("; did you mean {name!r}?", name=close[0]) if close else ""
