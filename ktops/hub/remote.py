"""What a model hub offers, in terms that hold for every hub: files with sizes and digests."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from ktops_engine.errors import KtopsError
from ktops_engine.text import Text, text

if TYPE_CHECKING:
    from ktops.hub.digests import Digest
    from ktops.hub.partial import PartialFile

SAMPLE_CHUNK_BYTES = 64 << 10
SHOWN_NAMES = 5  # of a repository's files in a message


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

    def sample(self, listing: Listing, file: RemoteFile, num_bytes: int) -> Generator[bytes]:
        """The first `num_bytes` of `file` in small pieces, asked for once, with no retry."""

    def explain(self, error: Exception, repo: str) -> KtopsError | None:
        """`error` of the hub's client as a KtopsError, None when it is not about the hub."""


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
        raise KtopsError(
            "no-such-files",
            _no_match(listing, include),
            text("give a pattern that matches: --include '*Q4_K_M*'"),
        )
    for file in chosen:
        parts = PurePosixPath(file.path).parts
        if file.path.startswith("/") or ".." in parts or ".cache" in parts or "\\" in file.path:
            raise KtopsError(
                "unsafe-path",
                text(
                    "{repo} lists {path!r}, which would be written outside its folder",
                    repo=listing.repo,
                    path=file.path,
                ),
                text("download from a repository that you trust"),
            )
    return chosen


def _no_match(listing: Listing, include: Sequence[str]) -> Text:
    names = sorted(file.path for file in listing.files)
    wanted = ", ".join(include)
    if not names:
        return text("{repo} holds no files", repo=listing.repo)
    return text(
        "{repo} has no file that matches {patterns}; it has {names}",
        repo=listing.repo,
        patterns=wanted,
        names=", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else ""),
    )
