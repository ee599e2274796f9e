"""Carries out a download: several files at once, each verified before it gets its name."""

from __future__ import annotations

import fcntl
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from ktops.hub.digests import SHA256, STATE_FOLDER, Digest, Ledger, digest_file
from ktops.hub.errors import RESUME, write_failed
from ktops.hub.interrupt import deferred_signals
from ktops.hub.partial import PartialFile, Stopped, partial_path
from ktops.hub.planning import DownloadPlan, Item, Step
from ktops.hub.rate import RateLimit
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

LOCK_FILE = "lock"
STOP_TIMEOUT_S = 1.0
SIGNAL_POLL_S = 0.2
ATTEMPTS = 2  # a body that arrives spoilt is fetched once more


@dataclass(frozen=True)
class Listener:
    """Told from any thread: bytes fetched of a file (negative when it starts over), bytes read to
    verify, a file that is whole, and remarks."""

    on_bytes: Callable[[Item, int], None]
    on_verified_bytes: Callable[[int], None]
    on_file: Callable[[Item], None]
    on_note: Callable[[str], None]


def run_plan(
    plan: DownloadPlan, workers: int, listener: Listener, limit: RateLimit | None = None
) -> None:
    """Make every file of `plan` whole. Call inside `locked`, with a plan made inside it.

    `limit` holds for all workers together. Ctrl-C ends it within a fraction of a second, a second
    one at once.
    Raises KtopsError: "checksum-mismatch" when a file arrives spoilt twice, the codes of
    `ktops.hub.errors`, and those of the GGUF reader for weights that are none. Whatever ends it,
    what has arrived stays and the next run goes on from there.
    """
    work = _Work(plan, listener, limit)
    queue = sorted(
        (item for item in plan.items if item.step is not Step.DONE),
        key=lambda item: (item.name.endswith(".gguf"), item.name),
    )
    if queue:
        work.run(queue, workers)
    _check_weights(plan)


@contextmanager
def locked(root: Path, state_folder: Path | None = None) -> Iterator[None]:
    """Hold the only right to write to `root`; the system takes it back when the process dies.

    The lock lies in `state_folder`, else below `root`. Raises KtopsError "download-running",
    "write-failed".
    """
    try:
        folder = state_folder or root / STATE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise write_failed(error, root) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KtopsError(
                "download-running",
                text("another ktops is at work on {folder}", folder=root),
                text("wait for it, or see who it is: fuser -v {lock}", lock=folder / LOCK_FILE),
            ) from error
        yield


class _Work:
    """The state that the threads of one download share."""

    def __init__(self, plan: DownloadPlan, listener: Listener, limit: RateLimit | None) -> None:
        self._plan = plan
        self._listener = listener
        self._limit = limit
        self._ledger = Ledger(plan.root)
        self._stop = threading.Event()
        self._first_weights = plan.weights[0].name if plan.weights else None

    def run(self, items: list[Item], workers: int) -> None:
        """Settle `items` in order on `workers` threads; the first error ends it."""
        waiting: SimpleQueue[Item] = SimpleQueue()
        results: SimpleQueue[Exception | None] = SimpleQueue()
        for item in items:
            waiting.put(item)
        # Daemons, so that Ctrl-C need not wait for a connection that has gone silent: whatever a
        # thread leaves behind is what a killed process leaves, and the next run goes on from it.
        threads = [
            threading.Thread(target=self._work, args=(waiting, results), daemon=True)
            for _ in range(min(workers, len(items)))
        ]
        with deferred_signals() as act_on_signals:
            for thread in threads:
                thread.start()
            try:
                for _ in items:
                    error = _next_result(results, act_on_signals)
                    if error is not None:
                        raise error
            finally:
                self._stop.set()
                deadline = time.monotonic() + STOP_TIMEOUT_S
                for thread in threads:
                    thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, waiting: SimpleQueue[Item], results: SimpleQueue[Exception | None]) -> None:
        while not self._stop.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                self._settle(item)
                results.put(None)
            except Exception as error:  # noqa: BLE001 - the main thread raises it
                self._stop.set()
                results.put(error)

    def _settle(self, item: Item) -> None:
        """Bring one file to its place, verified and remembered."""
        try:
            if item.step is Step.CHECK and self._is_right(item):
                self._listener.on_file(item)
                return
            for attempt in range(ATTEMPTS):
                if self._fetch(item):
                    break
                if attempt + 1 < ATTEMPTS:
                    self._listener.on_note(
                        text("{file} arrived spoilt; fetching it again", file=item.name)
                    )
            else:
                raise KtopsError(
                    "checksum-mismatch",
                    text(
                        "{file} arrived {attempts} times with other bytes than {hub} "
                        "announces for it",
                        file=item.name,
                        attempts=ATTEMPTS,
                        hub=self._plan.hub.name,
                    ),
                    text(
                        "another hub or network may do better: --source, --endpoint; then {resume}",
                        resume=RESUME,
                    ),
                )
            self._check_first_shard(item)
            self._listener.on_file(item)
        except OSError as error:
            raise write_failed(error, self._plan.root) from error

    def _is_right(self, item: Item) -> bool:
        """Read a file that lies here already; remove it when it is not what the hub has."""
        path = self._plan.root / item.name
        wanted = item.file.digest
        digest = digest_file(path, wanted.algorithm if wanted else SHA256, self._count_verified)
        if wanted in (None, digest):
            self._ledger.record(item.name, digest)
            return True
        self._listener.on_note(text("{file} is spoilt; fetching it again", file=item.name))
        self._listener.on_bytes(item, -item.file.size)
        self._ledger.forget(item.name)
        path.unlink()
        return False

    def _count_verified(self, count: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._listener.on_verified_bytes(count)

    def _fetch(self, item: Item) -> bool:
        """Fetch what is missing; False when the whole has the wrong digest, and is dropped."""
        path = partial_path(self._plan.root, item.name, item.file)
        on_bytes = functools.partial(self._listener.on_bytes, item)
        with PartialFile(
            path, item.file, on_bytes=on_bytes, stop=self._stop, limit=self._limit
        ) as partial:
            if partial.size < item.file.size:
                self._plan.hub.fetch(item.listing, item.file, partial)
            digest: Digest = partial.digest()
            if partial.size != item.file.size or item.file.digest not in (None, digest):
                partial.restart()
                return False
            partial.move_to(self._plan.root / item.name)
        self._ledger.record(item.name, digest)
        return True

    def _check_first_shard(self, item: Item) -> None:
        """Refuse a file that is no GGUF now, rather than when eight more shards are here."""
        if item.name == self._first_weights:
            from ktops_engine.gguf.header import read_header

            read_header(self._plan.root / item.name)


def _next_result(
    results: SimpleQueue[Exception | None], act_on_signals: Callable[[], None]
) -> Exception | None:
    while True:
        act_on_signals()
        with suppress(Empty):
            return results.get(timeout=SIGNAL_POLL_S)


def _check_weights(plan: DownloadPlan) -> None:
    """Open the headers of all shards together: the count, the sizes, that they belong together."""
    if plan.weights:
        from ktops_engine.gguf import open_gguf

        open_gguf(plan.root / plan.weights[0].name)
