"""Whether a TCP port can be bound, and which process listens on it."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from ktops_doctor.host import PortState

_LISTEN = "0A"


def port_state(address: str, port: int) -> PortState:
    """Bind `address:port` for a moment, as the server will, without listening.

    SO_REUSEADDR as servers set it: a port in TIME_WAIT counts as free."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        pid = listener(port) if error.errno == errno.EADDRINUSE else None
        return PortState(False, error.strerror or str(error), pid, _command_name(pid))
    return PortState(True)


def listener(port: int, proc: Path = Path("/proc")) -> int | None:
    """The process that listens on `port`, when this user may see it."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _inodes(proc / "net" / table, port)}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in proc.iterdir():
        if folder.name.isdigit() and _holds(folder / "fd", wanted):
            return int(folder.name)
    return None


def _inodes(table: Path, port: int) -> list[str]:
    """Socket inodes of the table's listening lines: field 1 is address:port, 3 state, 9 inode."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    rows = (line.split() for line in lines)
    return [
        row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
    ]


def _holds(folder: Path, wanted: set[str]) -> bool:
    try:
        return any(str(link.readlink()) in wanted for link in folder.iterdir())
    except OSError:
        return False


def _command_name(pid: int | None) -> str:
    if pid is None:
        return ""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
