"""A local server that speaks the routes of both model hubs, and fails in the ways they fail."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
SLOW_S = 0.3
LARGE_BYTES = 4096  # from here on a file has a sha256 in the listing, as large files of hubs do


@dataclass
class Fault:
    """What happens to the next `times` requests for a file.

    "status" answers `value`; "cut" ends the connection after `value` bytes of the body; "stall"
    sends `value` bytes and then nothing; "corrupt" flips the byte at `value`; "ignore-range"
    answers 200 with everything; "page" and "json" answer a route of the API with what is none of
    it; "longer" adds a byte; "none" lets one request pass.
    """

    kind: str
    value: int = 0
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """One request for the bytes of a file: by which hub's route, which file, from what byte on to
    which (None: to its end), answered how."""

    hub: str
    path: str
    start: int
    end: int | None
    status: int


class FakeHub:
    """Repositories as `{name: {path: bytes}}`, faults by file path or API route, and a log.

    A fault of "hf:PATH" or "modelscope:PATH" happens to that hub alone; the hubs named in `slow`
    let one wait for every body.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.data: list[Data] = []
        self.listings: list[str] = []
        self.tokens: set[str] = set()
        self.required_token: str | None = None
        self.slow: set[str] = set()
        self.released = threading.Event()
        self.url = ""

    def add_fault(self, path: str, kind: str, value: int = 0, times: int = 1, **headers) -> None:
        self.faults.setdefault(path, []).append(
            Fault(kind, value, times, {k.replace("_", "-"): v for k, v in headers.items()})
        )

    def take_fault(self, path: str, route: str = "") -> Fault | None:
        waiting = self.faults.get(f"{route}:{path}") or self.faults.get(path, [])
        if not waiting:
            return None
        waiting[0].times -= 1
        return waiting[0] if waiting[0].times > 0 else waiting.pop(0)

    def fetched(self) -> list[str]:
        return sorted({request.path for request in self.data})


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is what these tests are about; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A FakeHub that listens on the loopback interface until the block ends."""
    hub = FakeHub()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.route()

        def do_GET(self) -> None:
            self.route()

        def route(self) -> None:
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.tokens.add(token)
            if hub.required_token is not None and token != hub.required_token:
                self.refuse(401, {"X-Error-Code": "GatedRepo"})
            elif path.startswith("/api/models/"):
                self.hugging_face_api(path.removeprefix("/api/models/"))
            elif path.startswith("/api/v1/models/"):
                self.model_scope(path.removeprefix("/api/v1/models/"), query)
            elif "/resolve/" in path:
                repo, _, rest = path[1:].partition("/resolve/")
                self.send_file("hf", repo, rest.partition("/")[2])
            else:
                self.refuse(404)

        def hugging_face_api(self, route: str) -> None:
            owner, name, what, *_ = route.split("/")
            repo = f"{owner}/{name}"
            hub.listings.append(route)
            fault = hub.take_fault(what)
            if fault is not None:
                self.fail(fault)
            elif repo not in hub.repos:
                self.refuse(404, {"X-Error-Code": "RepoNotFound"})
            elif what == "revision":
                self.reply({"id": repo, "sha": COMMIT})
            else:
                self.reply([_tree_row(path, body) for path, body in hub.repos[repo].items()])

        def model_scope(self, route: str, query: dict[str, list[str]]) -> None:
            owner, name, *what = route.split("/")
            repo = f"{owner}/{name}"
            if repo not in hub.repos:
                self.reply({"Code": 10010205001, "Success": False, "Message": "not found"}, 404)
            elif what == ["repo", "files"]:
                hub.listings.append(route)
                fault = hub.take_fault("files")
                if fault is not None:
                    self.fail(fault)
                    return
                rows = [_scope_row(path, body) for path, body in hub.repos[repo].items()]
                self.reply({"Code": 200, "Success": True, "Data": {"Files": rows}})
            elif what == ["repo"]:
                self.send_file("modelscope", repo, query["FilePath"][0])
            else:
                self.reply({"Code": 200, "Success": True, "Data": {"Revision": "master"}})

        def send_file(self, route: str, repo: str, path: str) -> None:
            body = hub.repos.get(repo, {}).get(path)
            if body is None:
                self.refuse(404, {"X-Error-Code": "EntryNotFound"})
                return
            fault = hub.take_fault(path, route) if self.command == "GET" else None
            kind = fault.kind if fault else ""
            start, end = self.asked_range()
            status = fault.value if fault and kind == "status" else 206 if start or end else 200
            if kind == "ignore-range":
                status = 200
            if self.command == "GET":
                hub.data.append(Data(route, path, start, end, status))
            if fault and kind == "status":
                self.refuse(fault.value, fault.headers)
                return
            if fault and kind == "corrupt":
                changed = bytearray(body)
                changed[fault.value] ^= 0xFF
                body = bytes(changed)
            if kind == "longer":
                body += b"!"
            self.send_bytes(route, body, fault, status, start, len(body) if end is None else end)

        def send_bytes(
            self,
            route: str,
            body: bytes,
            fault: Fault | None,
            status: int,
            start: int,
            end: int,
        ) -> None:
            part = body[start:end] if status == 206 else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            if status == 206:
                last = start + len(part) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
            self.end_headers()
            if self.command == "GET":
                self.send_body(route, part, fault)

        def send_body(self, route: str, body: bytes, fault: Fault | None) -> None:
            if route in hub.slow:
                hub.released.wait(SLOW_S)
            if fault is not None and fault.kind in ("cut", "stall"):
                self.wfile.write(body[: fault.value])
                self.wfile.flush()
                if fault.kind == "stall":
                    hub.released.wait(60)
                self.close_connection = True
                return
            try:
                self.wfile.write(body)
            except OSError:  # the client has died, which is what some tests are about
                self.close_connection = True

        def asked_range(self) -> tuple[int, int | None]:
            """The first byte and the one behind the last; no end means all the rest."""
            header = self.headers.get("Range", "bytes=0-")
            first, _, last = header.removeprefix("bytes=").partition("-")
            return int(first), int(last) + 1 if last else None

        def reply(self, document: object, status: int = 200) -> None:
            self.send(status, "application/json", json.dumps(document).encode())

        def send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def fail(self, fault: Fault) -> None:
            """Answer for the API: a status, a page to sign in, or JSON of another service."""
            if fault.kind == "page":
                self.send(200, "text/html", b"<html>sign in</html>")
            elif fault.kind == "json":
                self.reply({"error": "no such route", "siblings": 3})
            else:
                self.refuse(fault.value, fault.headers)

        def refuse(self, status: int, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _tree_row(path: str, body: bytes) -> dict[str, object]:
    row: dict[str, object] = {
        "type": "file",
        "path": path,
        "oid": _git_sha1(body),
        "size": len(body),
    }
    if len(body) >= LARGE_BYTES:
        row["lfs"] = {
            "oid": hashlib.sha256(body).hexdigest(),
            "size": len(body),
            "pointerSize": 130,
        }
    return row


def _scope_row(path: str, body: bytes) -> dict[str, object]:
    return {
        "Path": path,
        "Name": path.rpartition("/")[2],
        "Type": "blob",
        "Size": len(body),
        "Sha256": hashlib.sha256(body).hexdigest(),
    }
