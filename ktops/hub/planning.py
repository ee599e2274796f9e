"""What a download has to do, file by file, before it does anything."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from ktops.hub.digests import Ledger
from ktops.hub.errors import not_enough_space
from ktops.hub.partial import partial_path
from ktops.hub.remote import Hub, Listing, RemoteFile, select
from ktops.hub.request import Request
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.gguf.shards import ShardName
from ktops_engine.text import text

FREE_SPACE_MARGIN_BYTES = 64 << 20
SHOWN_MODELS = 8  # of a repository's models in a message


class Step(StrEnum):
    """DONE: whole and verified; CHECK: the right size, never read; RESUME, FETCH: to be fetched."""

    DONE = "done"
    CHECK = "check"
    RESUME = "resume"
    FETCH = "fetch"


@dataclass(frozen=True)
class Item:
    """One file: what the hub has, `name` below the model's folder, and what is here of it."""

    listing: Listing
    file: RemoteFile
    name: str
    step: Step
    here_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that have to come from the hub."""
        return self.file.size - self.here_bytes


@dataclass(frozen=True)
class DownloadPlan:
    """All files of one model from one hub; `others` can serve it too."""

    request: Request
    hub: Hub
    items: tuple[Item, ...]
    others: tuple[Hub, ...] = ()

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.request.name

    @property
    def root(self) -> Path:
        """The folder of the model."""
        return self.request.root

    @property
    def is_done(self) -> bool:
        """Whether every file is here and verified."""
        return all(item.step is Step.DONE for item in self.items)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(item.file.size for item in self.items)

    @property
    def missing_bytes(self) -> int:
        """Bytes that have to come from the hub."""
        return sum(item.missing_bytes for item in self.items)

    @property
    def weights(self) -> list[Item]:
        """The GGUF files, the first shard first."""
        return [item for item in self.items if item.name.endswith(".gguf")]


def make_plan(request: Request, hub: Hub, *, reread: bool = False) -> DownloadPlan:
    """List the repositories, choose their files, compare with the disk. Fetches no data.

    `reread` distrusts what was verified before. Raises KtopsError: what `Hub.list_files` and
    `select` raise, "missing-shards" when a repository lacks some, and "several-models" when
    nothing says which of the GGUF models is meant.
    """
    ledger = Ledger(request.root)
    items = []
    for part in request.parts:
        listing = hub.list_files(part.repo)
        files = select(listing, part.include, part.exclude)
        if not request.chosen:
            _check_one_model(request, files)
        _check_shards(listing, files)
        for file in files:
            name = str(PurePosixPath(part.subfolder) / file.path)
            items.append(_item(listing, file, name, request.root, ledger, reread))
    return DownloadPlan(request, hub, tuple(items))


def check_space(plan: DownloadPlan) -> None:
    """Raise KtopsError "disk-too-small" unless all that is missing fits, with a small margin."""
    place = plan.root
    while not place.exists():
        place = place.parent
    free = _free_bytes(place)
    if plan.missing_bytes and plan.missing_bytes + FREE_SPACE_MARGIN_BYTES > free:
        raise not_enough_space(plan.missing_bytes + FREE_SPACE_MARGIN_BYTES, free, place)


def _free_bytes(place: Path) -> int:
    return shutil.disk_usage(place).free


def _item(
    listing: Listing, file: RemoteFile, name: str, root: Path, ledger: Ledger, reread: bool
) -> Item:
    path = root / name
    if path.is_file() and path.stat().st_size == file.size:
        known = ledger.verified(name)
        if known is not None and not reread and file.digest in (None, known):
            return Item(listing, file, name, Step.DONE, file.size)
        # A known digest of the same kind that differs: reading again would tell nothing new.
        if known is None or reread or known.algorithm != (file.digest or known).algorithm:
            return Item(listing, file, name, Step.CHECK, file.size)
    partial = partial_path(root, name, file)
    here = partial.stat().st_size if partial.is_file() else 0
    if 0 < here <= file.size:
        return Item(listing, file, name, Step.RESUME, here)
    return Item(listing, file, name, Step.FETCH, 0)


def _check_shards(listing: Listing, files: list[RemoteFile]) -> None:
    """A repository that is being filled may lack shards of what it has."""
    present = {file.path for file in listing.files}
    for file in files:
        path = PurePosixPath(file.path)
        shard = ShardName.parse(path.name)
        if shard is None:
            continue
        siblings = [str(path.with_name(shard.sibling(n + 1))) for n in range(shard.count)]
        missing = [name for name in siblings if name not in present]
        if missing:
            raise KtopsError(
                "missing-shards",
                text(
                    "{repo} holds {count} of the {total} shards of {model}",
                    repo=listing.repo,
                    count=shard.count - len(missing),
                    total=shard.count,
                    model=shard.prefix,
                ),
                text("take another hub with --source, or wait until the repository is complete"),
            )


def _check_one_model(request: Request, files: list[RemoteFile]) -> None:
    """A repository often holds a model in twenty quantisations; nobody wants all of them."""
    models: dict[str, int] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.suffix == ".gguf":
            shard = ShardName.parse(path.name)
            key = str(path.parent / (f"{shard.prefix}-*" if shard else path.name))
            models[key] = models.get(key, 0) + file.size
    if len(models) > 1:
        from ktops.units import format_bytes

        shown = sorted(models.items(), key=lambda model: model[1])
        names = ", ".join(f"{name} ({format_bytes(size)})" for name, size in shown[:SHOWN_MODELS])
        raise KtopsError(
            "several-models",
            text(
                "{name} holds {count} models: {models}",
                name=request.name,
                count=len(models),
                models=names + (", ..." if len(shown) > SHOWN_MODELS else ""),
            ),
            f"ktops download {request.name} --include '{shown[0][0]}'",
            exit_status=EXIT_USAGE,
        )
