"""Where the server would listen."""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, fail, ok
from ktops_doctor.fixes import remark
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_engine.text import text

_PORTS_TRIED = 20
_PRIVILEGED = 1024


def _port(host: Host, target: Target) -> Finding:
    if target.port == 0:
        return ok(text("any free port"))
    where = f"{target.host}:{target.port}"
    state = host.port(target.host, target.port)
    if state.free:
        return ok(text("{where} is free", where=where))
    free = _next_free(host, target)
    other = f"ktops serve {target.name} --port {free}"
    if state.pid is not None:
        return fail(
            text(
                "{where} is taken by {process} (pid {pid})",
                where=where,
                process=state.process or text("a process"),
                pid=state.pid,
            ),
            detail=text("the server cannot listen there"),
            fix=remark(f"kill {state.pid}", text("or: {command}", command=other)),
        )
    if target.port < _PRIVILEGED and state.reason == "Permission denied":
        detail = text("ports below 1024 are for root")
    elif state.reason == "Address already in use":
        detail = text("a process of another user holds it")
    else:
        other = f"ktops serve {target.name} --host 127.0.0.1"
        detail = text("this machine has no such address, or it may not be used")
    value = text("{where} cannot be used ({reason})", where=where, reason=state.reason)
    return fail(value, detail=detail, fix=other)


def _next_free(host: Host, target: Target) -> int:
    """A free port after the one that was asked for, 0 (the system chooses) where none is near."""
    first = max(target.port + 1, _PRIVILEGED)
    candidates = range(first, min(first + _PORTS_TRIED, 65536))
    return next((port for port in candidates if host.port(target.host, port).free), 0)


CHECKS = (
    Check(
        id="net.port",
        title=text("Port of the server"),
        section=Section.SERVER,
        run=_port,
        why="The server listens on port 10002 of 127.0.0.1 unless told otherwise. When the port is "
        "taken, the process that holds it is named.",
    ),
)
