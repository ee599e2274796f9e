"""Where the C++ sources are, and a hash that changes when they do."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.text import text


def find_sources() -> Path:
    """The folder with CMakeLists.txt: inside the package when installed from a wheel, at the root
    of the repository in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_csrc", package.parent.parent / "csrc"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise KtopsError(
        "sources-missing",
        text(
            "The C++ sources that belong to {package} are not there: the installation is damaged.",
            package=package,
        ),
        "python -m pip install --force-reinstall --no-deps ktops",
    )


def hash_sources(folder: Path) -> str:
    """SHA-256 over names and contents of everything that ends up in the library."""
    files = [folder / "CMakeLists.txt"]
    for part in ("include", "src"):
        files += (path for path in (folder / part).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
