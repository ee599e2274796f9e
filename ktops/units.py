"""Byte counts, rates and durations as people read and write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL_UNITS = ("B", "KB", "MB", "GB", "TB")
_FACTORS: Mapping[str, float] = MappingProxyType(
    {
        "k": 1e3,
        "m": 1e6,
        "g": 1e9,
        "t": 1e12,
        "ki": 2.0**10,
        "mi": 2.0**20,
        "gi": 2.0**30,
        "ti": 2.0**40,
    }
)
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)b(/s)?", re.IGNORECASE)


def format_bytes(num_bytes: float) -> str:
    """Bytes in binary units, as memory and files are counted: 404424858000 -> '376.7 GiB'."""
    return _scaled(num_bytes, 1024.0, _BINARY_UNITS)


def format_bytes_decimal(num_bytes: float) -> str:
    """Bytes in decimal units, as requirements are published: 382_000_000_000 -> '382 GB'."""
    return _scaled(num_bytes, 1000.0, _DECIMAL_UNITS)


def format_rate(bytes_per_second: float) -> str:
    """A transfer rate in decimal units a second, as disks and links are sold: '6.1 GB/s'."""
    return f"{format_bytes_decimal(bytes_per_second)}/s"


def parse_amount(words: str, *, is_rate: bool = False) -> float | None:
    """Bytes (or bytes/s) of '24GiB', '300GB/s'; None when it is no such amount."""
    found = _AMOUNT.fullmatch(words.strip())
    if found is None or bool(found[3]) != is_rate:
        return None
    return float(found[1]) * _FACTORS[found[2].lower()]


def format_duration(seconds: float) -> str:
    """Minutes and seconds, with hours when there are any: 78 -> '1:18', 3700 -> '1:01:40'."""
    total = max(0, round(seconds))
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= base and index < len(units) - 1:
        value /= base
        index += 1
    number = f"{value:.1f}".removesuffix(".0") if index else f"{value:.0f}"
    return f"{number} {units[index]}"
