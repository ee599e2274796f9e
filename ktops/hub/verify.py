"""Whether a model's files still are what the hub announced, asked without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktops.hub.digests import Ledger, digest_file
from ktops_engine.errors import KtopsError


@dataclass(frozen=True)
class Verdict:
    """Names below the model's folder: `good`, `spoilt` (other bytes), `missing`; bytes read."""

    good: tuple[str, ...]
    spoilt: tuple[str, ...]
    missing: tuple[str, ...]
    read_bytes: int


def recorded_bytes(root: Path) -> int:
    """Bytes that `verify_files` would read."""
    paths = [root / name for name in Ledger(root).names()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def verify_files(root: Path, on_bytes: Callable[[int], None]) -> Verdict:
    """Read every file that a download recorded below `root`, and compare the digests.

    What is spoilt or missing is dropped from the record, so that the next download mends it.
    Raises KtopsError "never-verified" when nothing is recorded.
    """
    ledger = Ledger(root)
    names = ledger.names()
    if not names:
        raise KtopsError(
            "never-verified",
            f"no digests are recorded in {root}: its files were not put there by ktops download",
        )
    good, spoilt, missing = [], [], []
    read_bytes = 0
    for name in names:
        path = root / name
        if not path.is_file():
            missing.append(name)
            ledger.forget(name)
            continue
        expected = ledger.expected(name)
        read_bytes += path.stat().st_size
        if digest_file(path, expected.algorithm, on_bytes) == expected:
            good.append(name)
            ledger.record(name, expected)
        else:
            spoilt.append(name)
            ledger.forget(name)
    return Verdict(tuple(good), tuple(spoilt), tuple(missing), read_bytes)
