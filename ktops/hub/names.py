"""Names that a model may have here: a name is a folder, and a word on the command line."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def is_model_name(name: str) -> bool:
    """Whether a model may be called `name`."""
    return _NAME.fullmatch(name) is not None
