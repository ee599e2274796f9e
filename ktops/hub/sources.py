"""Which hub a download comes from."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from ktops.hub.huggingface import HuggingFace
from ktops.hub.modelscope import ModelScope
from ktops.hub.remote import Hub
from ktops.hub.request import Request
from ktops_engine.errors import KtopsError


class Source(StrEnum):
    """AUTO is Hugging Face, and ModelScope where that does not answer or lacks the model."""

    AUTO = "auto"
    HF = "hf"
    MODELSCOPE = "modelscope"


_ELSEWHERE = ("hub-unreachable", "hub-failed", "hub-rate-limited", "hub-not-found", "hub-denied")


def choose_hub(request: Request, endpoint: str | None, on_note: Callable[[str], None]) -> Hub:
    """The hub for `request`, the first that lists all its repositories when it leaves the choice.

    `endpoint` is of the hub that the request names, else of Hugging Face. `on_note` hears why the
    second was taken. Raises KtopsError as `Hub.list_files`, of the first when both fail.
    """
    if request.source == Source.MODELSCOPE:
        return ModelScope(endpoint)
    first = HuggingFace(endpoint)
    if request.source == Source.HF or endpoint is not None:
        return first
    try:
        _list(first, request)
    except KtopsError as refusal:
        if refusal.code not in _ELSEWHERE:
            raise
        second = ModelScope()
        try:
            _list(second, request)
        except KtopsError as error:
            message = f"{refusal.message}\nand {error.message}"
            raise KtopsError(refusal.code, message, refusal.hint) from error
        on_note(f"{refusal.message}; taking {second.name}")
        return second
    return first


def _list(hub: Hub, request: Request) -> None:
    for part in request.parts:
        hub.list_files(part.repo)
