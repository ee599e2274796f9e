"""What a model hub offers, in terms that hold for every hub: files with sizes and digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from ktops_engine.errors import KtopsError

if TYPE_CHECKING:
    from ktops.hub.digests import Digest
    from ktops.hub.partial import PartialFile


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its path there, its exact bytes, its digest when the hub has it."""

    path: str
    size: int
    digest: Digest | None


@dataclass(frozen=True)
class Listing:
    """The files of `repo` at the fixed `revision` (a commit, or what the hub has in its place)."""

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A place that serves repositories. Its methods raise KtopsError only, are thread-safe."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def endpoint(self) -> str:
        """The URL it is reached at."""

    def list_files(self, repo: str) -> Listing:
        """Every file of the newest revision of `repo`, asked for once."""

    def fetch(self, listing: Listing, file: RemoteFile, partial: PartialFile) -> None:
        """Append what `partial` lacks of `file`, or start it over when the hub cannot resume."""


def select(
    listing: Listing, include: Sequence[str], exclude: Sequence[str] = ()
) -> list[RemoteFile]:
    """The files whose path matches a pattern of `include` and none of `exclude`, by path.

    `*` crosses folders, as in the clients of the hubs. Raises KtopsError "no-such-files" when
    nothing is left, "unsafe-path" when a path would leave the folder it is put in.
    """
    chosen = [
        file
        for file in sorted(listing.files, key=lambda file: file.path)
        if any(fnmatchcase(file.path, pattern) for pattern in include)
        and not any(fnmatchcase(file.path, pattern) for pattern in exclude)
    ]
    if not chosen:
        wanted = ", ".join(include)
        some = ", ".join(sorted(file.path for file in listing.files)[:5])
        raise KtopsError(
            "no-such-files",
            f"{listing.repo} has no file that matches {wanted}; it has {some or 'no files'}"
            + (", ..." if len(listing.files) > 5 else ""),
            "give a pattern that matches: --include '*Q4_K_M*'",
        )
    for file in chosen:
        parts = PurePosixPath(file.path).parts
        if file.path.startswith("/") or ".." in parts or ".cache" in parts or "\\" in file.path:
            raise KtopsError(
                "unsafe-path",
                f"{listing.repo} lists {file.path!r}, which would be written outside its folder",
                "download from a repository that you trust",
            )
    return chosen
