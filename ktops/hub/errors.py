"""What goes wrong between this machine and a hub, as errors with the next thing to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError

if TYPE_CHECKING:
    from ktops.hub.remote import Hub, RemoteFile

RESUME = "run the same command again: it goes on from what is here"


def hub_answered(hub: Hub, repo: str, status: int, text: str) -> KtopsError:
    """The hub refused or failed with HTTP `status`; `text` is its own explanation, if any."""
    because = f": {' '.join(text.split())}" if text else ""
    if status in (401, 403):
        return KtopsError(
            "hub-denied",
            f"{hub.name} does not show {repo} to you ({status}{because}): "
            "it is gated, private, or does not exist",
            f"accept its terms at {hub.endpoint}/{repo}, then: hf auth login   (or set HF_TOKEN)"
            if hub.name == "Hugging Face"
            else f"check the name at {hub.endpoint}, then set MODELSCOPE_API_TOKEN",
        )
    if status == 404:
        return KtopsError(
            "hub-not-found",
            f"{hub.name} at {hub.endpoint} has no model repository {repo}{because}",
            f"check the name at {hub.endpoint}/{repo}",
        )
    if status == 429:
        return KtopsError(
            "hub-rate-limited",
            f"{hub.name} refuses more requests for now (429{because})",
            f"wait a few minutes, then {RESUME}",
        )
    return KtopsError(
        "hub-failed", f"{hub.name} at {hub.endpoint} answered {status}{because}", RESUME
    )


def hub_unreachable(hub: Hub, error: Exception) -> KtopsError:
    """No answer: no network, a wrong endpoint, a firewall, or a connection that kept breaking."""
    why = " ".join(str(error).split()) or type(error).__name__
    return KtopsError(
        "hub-unreachable",
        f"{hub.name} cannot be reached at {hub.endpoint}: {why}",
        f"curl -I {hub.endpoint}   (what does the network say?)\n"
        "a mirror is named by --endpoint URL, a proxy by HTTPS_PROXY",
    )


def hub_broke_off(hub: Hub, repo: str, error: Exception) -> KtopsError:
    """A file ended before or after the size that the hub announced, without an HTTP error."""
    why = " ".join(str(error).split("\n")[0].split())
    return KtopsError("hub-failed", f"{hub.name} sent a file of {repo} wrongly: {why}", RESUME)


def file_too_large(hub: Hub, repo: str, file: RemoteFile) -> KtopsError:
    """The hub serves a file of this size only by a protocol that cannot resume."""
    from ktops.units import format_bytes_decimal

    return KtopsError(
        "file-too-large",
        f"{hub.name} does not serve {file.path} of {repo} over HTTP: "
        f"it has {format_bytes_decimal(file.size)}, the limit is 50 GB",
        "add --source modelscope, or fetch that file into the model's folder with:\n"
        f"hf download {repo} {file.path}",
    )


def hub_offline(name: str, variable: str) -> KtopsError:
    """The user forbade the network by `variable`."""
    return KtopsError("hub-offline", f"{variable} forbids reaching {name}", f"unset {variable}")


def not_enough_space(needed: int, free: int, place: Path) -> KtopsError:
    """The files do not fit; both in bytes."""
    from ktops.units import format_bytes

    return KtopsError(
        "disk-too-small",
        f"{format_bytes(needed)} are still to come, {format_bytes(free)} are free at {place}: "
        f"{format_bytes(needed - free)} are missing",
        f"df -h {place}   (free some space there, or choose another disk with --to FOLDER)",
        exit_status=EXIT_NOT_ENOUGH,
    )


def write_failed(error: OSError, place: Path) -> KtopsError:
    """The system refused a write below `place`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KtopsError(
            "disk-full",
            f"the disk of {place} became full: {error.strerror}",
            f"df -h {place}   (free some space, then {RESUME})",
            exit_status=EXIT_NOT_ENOUGH,
        )
    return KtopsError(
        "write-failed", f"cannot write below {place}: {error.strerror or error}", f"ls -ld {place}"
    )
