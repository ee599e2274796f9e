"""Whether a model's files still are what the hub announced, asked without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktops.hub.digests import SHA256, Digest, Ledger, digest_file
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Verdict:
    """Names below the model's folder: `good`, `spoilt` (other bytes), `missing`; bytes read."""

    good: tuple[str, ...]
    spoilt: tuple[str, ...]
    missing: tuple[str, ...]
    read_bytes: int


def record_files(ledger: Ledger, root: Path, paths: Sequence[Path], on_bytes: OnBytes) -> None:
    """Read files that no hub vouches for, and remember their digests for later comparisons."""
    for path in paths:
        name = path.relative_to(root).as_posix()
        ledger.record(name, digest_file(path, SHA256, on_bytes))


def recorded_bytes(ledger: Ledger, root: Path) -> int:
    """Bytes that `verify_files` would read."""
    paths = [root / name for name in ledger.names()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def verify_files(ledger: Ledger, root: Path, on_bytes: OnBytes, *, forget: bool = True) -> Verdict:
    """Read every file below `root` that `ledger` holds, and compare the digests.

    `forget` drops what is spoilt or missing from the record, so that the next download mends it.
    Raises KtopsError "never-verified" when nothing is recorded.
    """
    names = ledger.names()
    if not names:
        raise KtopsError(
            "never-verified",
            text(
                "no digests are recorded in {folder}: its files were not put there by "
                "ktops download",
                folder=root,
            ),
        )
    good, spoilt, missing = [], [], []
    read_bytes = 0
    for name in names:
        path = root / name
        if not path.is_file():
            missing.append(name)
            continue
        expected = ledger.expected(name)
        read_bytes += path.stat().st_size
        if _digest(path, expected.algorithm, on_bytes) == expected:
            good.append(name)
            ledger.record(name, expected)
        else:
            spoilt.append(name)
    if forget:
        for name in (*spoilt, *missing):
            ledger.forget(name)
    return Verdict(tuple(good), tuple(spoilt), tuple(missing), read_bytes)


def _digest(path: Path, algorithm: str, on_bytes: OnBytes) -> Digest | None:
    """The digest of `path`, None when the disk does not give its bytes back."""
    try:
        return digest_file(path, algorithm, on_bytes)
    except OSError:
        return None
