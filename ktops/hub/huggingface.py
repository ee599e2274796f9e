"""Hugging Face through its own client, huggingface_hub.

Files come by the client's `http_get`, which appends to an open file and resumes it. Its
`hf_hub_download` does neither across processes: it writes to a name made up for each call and
removes that on failure, so that a killed 47 GB shard would start over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ktops.hub.digests import GIT_SHA1, SHA256, Digest
from ktops.hub.errors import (
    explaining,
    file_too_large,
    hub_answered,
    hub_broke_off,
    hub_offline,
    hub_unreachable,
)
from ktops.hub.remote import SAMPLE_CHUNK_BYTES, Listing, RemoteFile

if TYPE_CHECKING:
    from ktops.hub.partial import PartialFile
    from ktops_engine.errors import KtopsError

DEFAULT_ENDPOINT = "https://huggingface.co"
REVISION = "main"
LIST_TIMEOUT_S = 10.0
SAMPLE_TIMEOUT_S = 5.0


class HuggingFace:
    """The hub at `endpoint`, else at HF_ENDPOINT, else at huggingface.co.

    The environment is read here because the client reads it only once, at its import. The token
    is the client's: HF_TOKEN or what `hf auth login` stored.
    """

    name = "Hugging Face"

    def __init__(self, endpoint: str | None = None) -> None:
        chosen = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        self.endpoint = (chosen if "://" in chosen else f"https://{chosen}").rstrip("/")
        self._listings: dict[str, Listing] = {}

    def list_files(self, repo: str) -> Listing:
        """See Hub.list_files. Raises KtopsError with the codes of `ktops.hub.errors`."""
        if repo not in self._listings:
            self._listings[repo] = self._list(repo)
        return self._listings[repo]

    def _list(self, repo: str) -> Listing:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise hub_offline(self.name, "HF_HUB_OFFLINE")
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint)
        with explaining(self, repo, listing=True):
            commit = api.model_info(repo, revision=REVISION, timeout=LIST_TIMEOUT_S).sha or REVISION
            tree = list(api.list_repo_tree(repo, recursive=True, revision=commit))
        files = tuple(_remote_file(entry) for entry in tree if isinstance(entry, RepoFile))
        return Listing(repo, commit, files)

    def fetch(self, listing: Listing, file: RemoteFile, partial: PartialFile) -> None:
        """See Hub.fetch. The client resumes a broken connection five times by itself.

        The client asks for no file above MAX_HTTP_DOWNLOAD_SIZE in one request, because the hub's
        content delivery network serves none; so a larger one comes in pieces of that size. Raises
        KtopsError "file-too-large" where the hub refuses those too: its bridge from xet storage is
        known to answer 400 for files of more than 400 GB.
        """
        from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils.logging import set_verbosity

        set_verbosity(logging.ERROR)  # it would write about each broken connection
        in_pieces = file.size > MAX_HTTP_DOWNLOAD_SIZE
        while partial.size < file.size:
            piece = partial.size // MAX_HTTP_DOWNLOAD_SIZE
            end = min((piece + 1) * MAX_HTTP_DOWNLOAD_SIZE, file.size)
            with explaining(self, listing.repo):
                try:
                    http_get(
                        self._url(listing, file),
                        cast(BinaryIO, partial),
                        resume_size=partial.size,
                        headers=_headers(end if in_pieces else None),
                        expected_size=end,
                        tqdm_class=cast(Any, _NoBar),
                    )
                except HfHubHTTPError as error:
                    if in_pieces and error.response.status_code == HTTPStatus.BAD_REQUEST:
                        raise file_too_large(self, listing.repo, file) from error
                    raise

    def sample(self, listing: Listing, file: RemoteFile, num_bytes: int) -> Generator[bytes]:
        """See Hub.sample."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        with (
            explaining(self, listing.repo),
            get_session().stream(
                "GET",
                self._url(listing, file),
                headers=_headers(num_bytes),
                timeout=SAMPLE_TIMEOUT_S,
                follow_redirects=True,
            ) as response,
        ):
            hf_raise_for_status(response)
            yield from response.iter_bytes(SAMPLE_CHUNK_BYTES)

    def _url(self, listing: Listing, file: RemoteFile) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            listing.repo, file.path, revision=listing.revision, endpoint=self.endpoint
        )

    def explain(self, error: Exception, repo: str) -> KtopsError | None:
        """See Hub.explain."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return hub_answered(self, repo, status, str(error.server_message or ""))
        if isinstance(error, OfflineModeIsEnabled):
            return hub_offline(self.name, "HF_HUB_OFFLINE")
        if isinstance(error, HFValidationError):
            return hub_answered(self, repo, 404, "")
        if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
            return hub_unreachable(self, error)
        if isinstance(error, OSError) and error.errno is None:  # the client counted other bytes
            return hub_broke_off(self, repo, error)
        return None


class _NoBar:
    """Stands in for the client's progress bar: the file that is written counts its own bytes."""

    def __init__(self, **options: object) -> None:
        """Take the options of a bar and show nothing."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: float | None = 1) -> None:
        """Count nothing."""


def _headers(end: int | None) -> dict[str, str]:
    """The client's token, and the first `end` bytes, from which it cuts off what is here."""
    from huggingface_hub import get_token

    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return headers if end is None else {**headers, "Range": f"bytes=0-{end - 1}"}


def _remote_file(entry: Any) -> RemoteFile:
    if entry.lfs is not None:
        return RemoteFile(entry.path, entry.lfs.size, Digest(SHA256, entry.lfs.sha256))
    return RemoteFile(entry.path, entry.size, Digest(GIT_SHA1, entry.blob_id))
