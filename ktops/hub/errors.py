"""What goes wrong between this machine and a hub, as errors with the next thing to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.text import Text, text

if TYPE_CHECKING:
    from ktops.hub.remote import Hub, RemoteFile

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)  # the clients, of an odd answer
RESUME = text("run the same command again: it goes on from what is here")


@contextmanager
def explaining(hub: Hub, repo: str, *, listing: bool = False) -> Iterator[None]:
    """Raise an error of the hub's client inside as a KtopsError; one that is not about the hub goes
    on as it is. While files are `listing`, an answer that the client cannot read is about the hub.
    """
    try:
        yield
    except Exception as error:
        explained = hub.explain(error, repo)
        if explained is None and listing and isinstance(error, _MALFORMED):
            explained = _no_hub(hub, error)
        if explained is None:
            raise
        raise explained from error


def hub_answered(hub: Hub, repo: str, status: int, explanation: str) -> KtopsError:
    """The hub refused or failed with HTTP `status`; `explanation` is its own, if any."""
    own = " ".join(explanation.split())
    answer = f"{status}: {own}" if own else str(status)
    if status in (401, 403):
        return KtopsError(
            "hub-denied",
            text(
                "{hub} does not show {repo} to you ({answer}): "
                "it is gated, private, or does not exist",
                hub=hub.name,
                repo=repo,
                answer=answer,
            ),
            _how_to_log_in(hub, repo),
        )
    if status == 404:
        return KtopsError(
            "hub-not-found",
            text(
                "{hub} at {endpoint} has no model repository {repo} ({answer})",
                hub=hub.name,
                endpoint=hub.endpoint,
                repo=repo,
                answer=answer,
            ),
            text("check the name at {url}", url=f"{hub.endpoint}/{repo}"),
        )
    if status == 429:
        return KtopsError(
            "hub-rate-limited",
            text("{hub} refuses more requests for now ({answer})", hub=hub.name, answer=answer),
            text("wait a few minutes, then {resume}", resume=RESUME),
        )
    return KtopsError(
        "hub-failed",
        text(
            "{hub} at {endpoint} answered {answer}",
            hub=hub.name,
            endpoint=hub.endpoint,
            answer=answer,
        ),
        RESUME,
    )


def _how_to_log_in(hub: Hub, repo: str) -> Text:
    if hub.name == "Hugging Face":
        return text(
            "accept its terms at {url}, then: hf auth login   (or set HF_TOKEN)",
            url=f"{hub.endpoint}/{repo}",
        )
    return text("check the name at {url}, then set MODELSCOPE_API_TOKEN", url=hub.endpoint)


def hub_unreachable(hub: Hub, error: Exception) -> KtopsError:
    """No answer: no network, a wrong endpoint, a firewall, or a connection that kept breaking."""
    return KtopsError(
        "hub-unreachable",
        text(
            "{hub} cannot be reached at {endpoint}: {why}",
            hub=hub.name,
            endpoint=hub.endpoint,
            why=" ".join(str(error).split()) or type(error).__name__,
        ),
        text(
            "curl -I {endpoint}   (what does the network say?)\n"
            "a mirror is named by --endpoint URL, a proxy by HTTPS_PROXY",
            endpoint=hub.endpoint,
        ),
    )


def _no_hub(hub: Hub, error: Exception) -> KtopsError:
    """Something answers that does not speak a hub's language: a sign-in page, a wrong endpoint."""
    return KtopsError(
        "hub-failed",
        text(
            "what answers at {endpoint} is not {hub}: {why}",
            endpoint=hub.endpoint,
            hub=hub.name,
            why=" ".join(str(error).split()) or type(error).__name__,
        ),
        text("curl {endpoint}   (a sign-in page of the network?)", endpoint=hub.endpoint),
    )


def hub_silent(hub: Hub, seconds: float) -> KtopsError:
    """The hub had not listed the files after `seconds`."""
    return KtopsError(
        "hub-unreachable",
        text(
            "{hub} at {endpoint} did not answer within {seconds} s",
            hub=hub.name,
            endpoint=hub.endpoint,
            seconds=f"{seconds:.0f}",
        ),
        RESUME,
    )


def hub_broke_off(hub: Hub, repo: str, error: Exception) -> KtopsError:
    """A file ended before or after the size that the hub announced, without an HTTP error."""
    why = " ".join(str(error).split("\n")[0].split())
    return KtopsError(
        "hub-failed",
        text("{hub} sent a file of {repo} wrongly: {why}", hub=hub.name, repo=repo, why=why),
        RESUME,
    )


def file_too_large(hub: Hub, repo: str, file: RemoteFile) -> KtopsError:
    """The hub refuses to serve a file of this size over HTTP."""
    from ktops.units import format_bytes_decimal

    return KtopsError(
        "file-too-large",
        text(
            "{hub} does not serve {path} of {repo} over HTTP: {size} are too much for it",
            hub=hub.name,
            path=file.path,
            repo=repo,
            size=format_bytes_decimal(file.size),
        ),
        text(
            "add --source modelscope, or fetch that file into the model's folder with:\n{command}",
            command=f"hf download {repo} {file.path} --local-dir FOLDER",
        ),
    )


def hub_offline(name: str, variable: str) -> KtopsError:
    """The user forbade the network by `variable`."""
    return KtopsError(
        "hub-offline",
        text("{variable} forbids reaching {hub}", variable=variable, hub=name),
        f"unset {variable}",
    )


def not_enough_space(needed: int, free: int, place: Path) -> KtopsError:
    """The files do not fit; both in bytes."""
    from ktops.units import format_bytes

    return KtopsError(
        "disk-too-small",
        text(
            "{needed} are still to come, {free} are free at {place}: {missing} are missing",
            needed=format_bytes(needed),
            free=format_bytes(free),
            place=place,
            missing=format_bytes(needed - free),
        ),
        text(
            "df -h {place}   (free some space there, or choose another disk with --to FOLDER)",
            place=place,
        ),
        exit_status=EXIT_NOT_ENOUGH,
    )


def write_failed(error: OSError, place: Path) -> KtopsError:
    """The system refused a write below `place`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KtopsError(
            "disk-full",
            text("the disk of {place} became full: {why}", place=place, why=error.strerror),
            text("df -h {place}   (free some space, then {resume})", place=place, resume=RESUME),
            exit_status=EXIT_NOT_ENOUGH,
        )
    if error.errno == errno.EFBIG:
        return KtopsError(
            "disk-too-small",
            text(
                "the disk of {place}, or a limit on this process, takes no file of that size",
                place=place,
            ),
            text("df -T {place}; ulimit -f   (FAT ends at 4 GiB a file)", place=place),
            exit_status=EXIT_NOT_ENOUGH,
        )
    return KtopsError(
        "write-failed",
        text("cannot write below {place}: {why}", place=place, why=error.strerror or error),
        f"ls -ld {place}",
    )
