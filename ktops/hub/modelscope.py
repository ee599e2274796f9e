"""ModelScope through its own client, modelscope_hub.

Lists and streams by the client; what arrives is written, resumed and digested by PartialFile. The
client's own `download_file` gives a file an hour in all unless MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT
says otherwise, and reads files again that it has verified before; a stream has neither fault.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ktops.hub.digests import SHA256, Digest
from ktops.hub.errors import explaining, hub_answered, hub_unreachable
from ktops.hub.remote import SAMPLE_CHUNK_BYTES, Listing, RemoteFile

if TYPE_CHECKING:
    from ktops.hub.partial import PartialFile
    from ktops_engine.errors import KtopsError

DEFAULT_ENDPOINT = "https://modelscope.cn"
REVISION = "master"
REPO_TYPE = "model"
CHUNK_BYTES = 1 << 20
RETRIES = 5  # in a row without a single new byte
RETRY_WAIT_S = 1.0
MAX_RETRY_WAIT_S = 60.0


class ModelScope:
    """The hub at `endpoint`, else at MODELSCOPE_ENDPOINT, else at modelscope.cn.

    The token is the client's: MODELSCOPE_API_TOKEN or what its login stored.
    """

    name = "ModelScope"

    def __init__(self, endpoint: str | None = None) -> None:
        chosen = endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or DEFAULT_ENDPOINT
        self.endpoint = (chosen if "://" in chosen else f"https://{chosen}").rstrip("/")
        self._listings: dict[str, Listing] = {}

    def list_files(self, repo: str) -> Listing:
        """See Hub.list_files. Raises KtopsError with the codes of `ktops.hub.errors`."""
        if repo not in self._listings:
            with explaining(self, repo, listing=True):
                entries = self._client().list_repo_files(repo, REPO_TYPE, revision=REVISION)
            files = tuple(
                RemoteFile(e.path, e.size, Digest(SHA256, e.sha256) if e.sha256 else None)
                for e in entries
                if e.type != "tree"
            )
            self._listings[repo] = Listing(repo, REVISION, files)
        return self._listings[repo]

    def fetch(self, listing: Listing, file: RemoteFile, partial: PartialFile) -> None:
        """See Hub.fetch. Resumes a broken connection five times without a new byte in between."""
        import requests
        from modelscope_hub.errors import NetworkError, RateLimitError

        client = self._client()
        failures = 0
        while partial.size < file.size:
            before = partial.size
            wait_s = RETRY_WAIT_S
            with explaining(self, listing.repo):
                try:
                    self._stream(client, listing, file, partial)
                    continue
                except (requests.RequestException, NetworkError, RateLimitError) as error:
                    failures = 1 if partial.size > before else failures + 1
                    if failures > RETRIES:
                        raise
                    if isinstance(error, RateLimitError):
                        wait_s = min(error.retry_after or RETRY_WAIT_S, MAX_RETRY_WAIT_S)
            time.sleep(wait_s)

    def sample(self, listing: Listing, file: RemoteFile, num_bytes: int) -> Generator[bytes]:
        """See Hub.sample."""
        headers = {"Accept-Encoding": "identity", "Range": f"bytes=0-{num_bytes - 1}"}
        with explaining(self, listing.repo):
            stream = self._client().legacy.download_stream(
                listing.repo, REPO_TYPE, file.path, listing.revision, headers=headers
            )
            with closing(stream) as response:
                yield from response.iter_content(SAMPLE_CHUNK_BYTES)

    def _stream(
        self, client: Any, listing: Listing, file: RemoteFile, partial: PartialFile
    ) -> None:
        import requests

        headers = {"Accept-Encoding": "identity"}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
        stream = client.legacy.download_stream(
            listing.repo, REPO_TYPE, file.path, listing.revision, headers=headers
        )
        with closing(stream) as response:
            if partial.size and response.status_code != requests.codes.partial_content:
                partial.restart()
            for chunk in response.iter_content(CHUNK_BYTES):
                partial.write(chunk)
        if partial.size < file.size:
            raise requests.ConnectionError(f"the connection ended after {partial.size} bytes")

    def _client(self) -> Any:
        from modelscope_hub import HubApi

        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)  # it tells of each retry
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        return HubApi(endpoint=self.endpoint, token=token)

    def explain(self, error: Exception, repo: str) -> KtopsError | None:
        """See Hub.explain."""
        import requests
        from modelscope_hub.errors import APIError, HubError

        if isinstance(error, APIError):
            return hub_answered(self, repo, error.status_code or 500, error.message)
        if isinstance(error, HubError | requests.RequestException):
            return hub_unreachable(self, error)
        return None
