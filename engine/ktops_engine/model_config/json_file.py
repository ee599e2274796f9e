"""Read the JSON files of a model's config folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ktops_engine.errors import KtopsError
from ktops_engine.text import text

MAX_JSON_BYTES = 64 << 20


def read_json_object(path: Path) -> dict[str, Any] | None:
    """A JSON file whose top level is an object; None when there is no such file.

    Raises KtopsError config-invalid for anything else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise unusable(path, text("it is larger than {limit} MiB", limit=MAX_JSON_BYTES >> 20))
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, text("it cannot be read ({reason})", reason=error.strerror)) from error
    except (ValueError, RecursionError) as error:
        raise unusable(path, text("it is not JSON ({error})", error=error)) from error
    if not isinstance(value, dict):
        raise unusable(path, text("its top level is not an object"))
    return value


def unusable(path: Path, why: str) -> KtopsError:
    """The error for a configuration file that says something it cannot mean."""
    return KtopsError(
        "config-invalid",
        text("{path} is not usable: {why}.", path=path, why=why),
        text("Download it again from the model's repository: rm '{path}'", path=path),
    )
