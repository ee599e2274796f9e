"""What a file is that should have been a GGUF, in words a user recognises."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.text import Text, text

_OLD_GGML_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\uffff]+")


def bad_magic(path: Path, head: bytes, size: int) -> KtopsError:
    """The error for a file whose first bytes (`head`, up to a few hundred) are not `GGUF`."""
    what, hint = _describe(path, head, size)
    return KtopsError(
        "gguf-bad-magic", text("{path} is not a GGUF model: {what}.", path=path, what=what), hint
    )


def _describe(path: Path, head: bytes, size: int) -> tuple[Text, Text]:
    """What the file is, and what helps."""
    other_format = _other_format(path, head, size)
    if other_format is not None:
        return other_format
    download_again = text("Delete it and download the model again: rm '{path}'", path=path)
    if size == 0:
        return text("it is empty (0 bytes), so its download never started"), download_again
    if not head.strip(b"\0"):
        what = text(
            "it holds zeros where the header belongs ({size} bytes reserved, never downloaded)",
            size=size,
        )
        return what, download_again
    if head.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        what = text(
            "it is a web page (HTML), most likely a log-in or error page saved under this name"
        )
        return what, download_again
    excerpt = _text_excerpt(head)
    if excerpt is not None:
        what = text('it is a text file that begins "{excerpt}"', excerpt=excerpt)
        return what, download_again
    what = text("its first bytes are {bytes}, not 47 47 55 46", bytes=head[:4].hex(" "))
    return what, download_again


def _other_format(path: Path, head: bytes, size: int) -> tuple[Text, Text] | None:
    """A whole file of another kind, and how to come to the model; None: it is none of those."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        what = text("it is a git-lfs pointer of {size} bytes that stands for a file", size=size)
        declared = re.search(rb"^size (\d+)", head, re.MULTILINE)
        if declared and len(declared[1]) < 20:
            what = text(
                "it is a git-lfs pointer of {size} bytes that stands for a file of {real} bytes",
                size=size,
                real=int(declared[1]),
            )
        folder = path.parent
        return what, text("Fetch the real file: git -C '{folder}' lfs pull", folder=folder)
    if head.startswith(b"PK\x03\x04"):
        what = text("it is a zip archive or a PyTorch checkpoint")
        return what, text("Give the path of a .gguf file")
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return text("it is a safetensors file"), text("Give the path of a .gguf file")
    if head[:4] in _OLD_GGML_MAGICS:
        what = text("it is in the GGML format of before August 2023")
        return what, text("Download a .gguf version of it")
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        return text("it is a compressed archive"), text("Unpack it first: file '{path}'", path=path)
    return None


def _text_excerpt(head: bytes) -> str | None:
    """The first words of a text, None for binary data."""
    try:
        # The sample may end inside a character, which an incremental decoder forgives.
        words = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    if any(ord(char) < 32 and char not in "\t\n\r\f" for char in words):
        return None
    return " ".join(_NOT_PRINTABLE.sub(" ", words).split())[:40]
