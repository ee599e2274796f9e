"""Child: does Triton import, and has this Python the headers that it compiles against?"""

import importlib.util
import json
import sys
import sysconfig
from pathlib import Path


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def headers() -> Path:
    """Where Triton looks for Python.h; Debian's own scheme leads elsewhere, and it knows that."""
    scheme = sysconfig.get_default_scheme()
    return Path(
        sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    )


def main() -> None:
    say(python_headers=(headers() / "Python.h").exists())
    found = importlib.util.find_spec("triton") is not None
    say(triton_found=found)
    if not found:
        return
    try:
        import triton
    except BaseException as error:  # noqa: BLE001 - whatever breaks is the answer
        say(triton_error=" ".join(f"{type(error).__name__}: {error}".split()))
        return
    say(triton=str(triton.__version__))


main()
