"""What a file is that should have been a GGUF, in words a user recognises."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ktops_engine.errors import KtopsError

_OLD_GGML_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\uffff]+")


def bad_magic(path: Path, head: bytes, size: int) -> KtopsError:
    """The error for a file whose first bytes (`head`, up to a few hundred) are not `GGUF`."""
    what, hint = _describe(path, head, size)
    return KtopsError("gguf-bad-magic", f"{path} is not a GGUF model: {what}.", hint)


def _describe(path: Path, head: bytes, size: int) -> tuple[str, str]:
    download_again = f"Delete it and download the model again: rm '{path}'"
    text_start = head.lstrip()[:64].lower()
    if size == 0:
        return "it is empty (0 bytes), so its download never started", download_again
    if not head.strip(b"\0"):
        return (
            f"it holds zeros where the header belongs ({size} bytes reserved, never downloaded)",
            download_again,
        )
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        declared = re.search(rb"^size (\d+)", head, re.MULTILINE)
        real = f" of {int(declared[1])} bytes" if declared and len(declared[1]) < 20 else ""
        return (
            f"it is a git-lfs pointer of {size} bytes that stands for a file{real}",
            f"Fetch the real file: git -C '{path.parent}' lfs pull",
        )
    if text_start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return (
            "it is a web page (HTML), most likely a log-in or error page saved under this name",
            download_again,
        )
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive or a PyTorch checkpoint", "Give the path of a .gguf file"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "it is a safetensors file", "Give the path of a .gguf file"
    if head[:4] in _OLD_GGML_MAGICS:
        return "it is in the GGML format of before August 2023", "Download a .gguf version of it"
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        return "it is a compressed archive", f"Unpack it first: file '{path}'"
    excerpt = _text_excerpt(head)
    if excerpt is not None:
        return f'it is a text file that begins "{excerpt}"', download_again
    return f"its first bytes are {head[:4].hex(' ')}, not 47 47 55 46", download_again


def _text_excerpt(head: bytes) -> str | None:
    """The first words of a text, None for binary data."""
    try:
        # The sample may end inside a character, which an incremental decoder forgives.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    if any(ord(char) < 32 and char not in "\t\n\r\f" for char in text):
        return None
    return " ".join(_NOT_PRINTABLE.sub(" ", text).split())[:40]
