"""Read the JSON files of a model's config folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ktops_engine.errors import KtopsError

MAX_JSON_BYTES = 64 << 20


def read_json_object(path: Path) -> dict[str, Any] | None:
    """A JSON file whose top level is an object; None when there is no such file.

    Raises KtopsError config-invalid for anything else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise unusable(path, f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise unusable(path, "its top level is not an object")
    return value


def unusable(path: Path, why: str) -> KtopsError:
    """The error for a configuration file that says something it cannot mean."""
    return KtopsError(
        "config-invalid",
        f"{path} is not usable: {why}.",
        f"Download it again from the model's repository: rm '{path}'",
    )
