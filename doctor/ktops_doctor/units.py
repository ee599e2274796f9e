"""Bytes and versions as the report writes them."""

from __future__ import annotations

import re

GIB = 1 << 30
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("B", "KB", "MB", "GB", "TB")


def binary(num_bytes: float) -> str:
    """Bytes as machines count them: 2199023255552 -> '2.0 TiB'."""
    return _scaled(num_bytes, 1024.0, _BINARY)


def decimal(num_bytes: float) -> str:
    """Bytes as needs are published: 382000000000 -> '382 GB'."""
    return _scaled(num_bytes, 1000.0, _DECIMAL).replace(".0 ", " ")


def gib(num_bytes: float) -> str:
    """Bytes in GiB with one decimal and no unit: for 'x of y GiB'."""
    return f"{num_bytes / GIB:.1f}"


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: '12.2.140' -> (12, 2, 140), '2.13.0+cpu' -> (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", text.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= base and index < len(units) - 1:
        value /= base
        index += 1
    return f"{value:.1f} {units[index]}" if index else f"{value:.0f} {units[0]}"
