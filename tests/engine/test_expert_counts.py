"""How often experts were chosen is kept, weighs new use more, and is never an error."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_gguf import V3, write_tiny_gguf

from ktops_engine import expert_counts
from ktops_engine.config import DummyWeights, EngineConfig
from ktops_engine.demo import demo_path
from ktops_engine.expert_counts import (
    ENOUGH_CHOICES,
    MOST_CHOICES,
    add_counts,
    counts_path,
    counts_shape,
    decayed,
    known_use,
    load_counts,
)
from ktops_engine.gguf import open_gguf
from ktops_engine.kept_counts import CountKeeper
from ktops_engine.model_config import resolve_model_config

SHAPE = (3, 8)


def random_counts(most: int = 1000) -> np.ndarray:
    return np.random.default_rng().integers(0, most, SHAPE, dtype=np.int32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counts" / "model.npy"


def test_what_was_added_is_there_after_a_restart(path: Path) -> None:
    parts = [random_counts() for _ in range(3)]
    for part in parts:
        add_counts(path, part)
    found = load_counts(path, SHAPE)
    assert found is not None
    assert np.array_equal(found, sum(part.astype(np.int64) for part in parts))
    assert list(path.parent.iterdir()) == [path]


def test_without_a_file_nothing_was_counted(path: Path) -> None:
    found = load_counts(path, SHAPE)
    assert found is not None
    assert not found.any()


def test_new_use_wins_over_old(path: Path) -> None:
    old, new = np.zeros(SHAPE, np.int64), np.zeros(SHAPE, np.int64)
    old[:, 0] = MOST_CHOICES
    new[:, 1] = MOST_CHOICES // 2
    add_counts(path, old)
    add_counts(path, new)
    add_counts(path, new)
    found = load_counts(path, SHAPE)
    assert found is not None
    assert (found[:, 1] > found[:, 0]).all()
    assert found.sum(axis=1).max() <= MOST_CHOICES


def test_halving_keeps_the_order() -> None:
    counts = random_counts(1 << 24).astype(np.int64)
    smaller = decayed(counts)
    assert MOST_CHOICES // 3 < smaller.sum(axis=1).max() <= MOST_CHOICES
    for before, after in zip(counts, smaller, strict=True):
        assert (np.diff(after[np.argsort(before)]) >= 0).all()
    assert np.array_equal(decayed(smaller), smaller)


def damages() -> dict[str, bytes]:
    whole = np.lib.format.header_data_from_array_1_0(np.zeros(SHAPE, np.int64))
    assert whole
    return {"empty": b"", "text": b"{}", "cut": b"\x93NUMPY\x01\x00v\x00{'descr': '<i8'"}


@pytest.mark.parametrize("content", damages().values(), ids=damages())
def test_a_damaged_file_is_begun_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert load_counts(path, SHAPE) is None
    new = random_counts()
    add_counts(path, new)
    assert np.array_equal(load_counts(path, SHAPE), new)


@pytest.mark.parametrize(
    "held",
    [
        np.zeros((2, 8), np.int64),
        np.zeros(SHAPE, np.float64),
        np.full(SHAPE, -1, np.int64),
        np.array([{"a": 1}], dtype=object),
    ],
    ids=["another shape", "another type", "negative", "objects"],
)
def test_a_file_of_something_else_counts_as_damaged(path: Path, held: np.ndarray) -> None:
    path.parent.mkdir()
    with path.open("wb") as file:
        np.save(file, held)
    assert load_counts(path, SHAPE) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "model.npy"
    add_counts(path, random_counts())
    assert load_counts(path, SHAPE) is None


def add_ones(path: Path, times: int) -> None:
    for _ in range(times):
        add_counts(path, np.ones(SHAPE, np.int32))


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_ones, args=(path, 20)) for _ in range(2)]
    for writer in writers:
        writer.start()
    add_ones(path, 20)
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = load_counts(path, SHAPE)
    assert found is not None
    assert (found == 60).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_process_that_was_stopped_inside_keeps_nobody_waiting(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(expert_counts, "LOCK_TRIES", 2)
    path.parent.mkdir()
    with expert_counts._locked(path.parent):
        add_counts(path, random_counts())
    assert path.exists()


def test_a_keeper_takes_what_was_counted_when_it_is_time(path: Path) -> None:
    counts = torch.zeros(SHAPE, dtype=torch.int32)
    keeper = CountKeeper(counts, len(counts), path, seconds_between=1e9)
    counts += 2
    keeper.look()
    assert (counts == 2).all()
    keeper.close()
    assert (counts == 0).all()
    assert (load_counts(path, SHAPE) == 2).all()
    often = CountKeeper(counts, len(counts), path, seconds_between=0)
    for _ in range(3):
        counts += 1
        often.look()
        assert (counts == 0).all()
    often.look()
    often.close()
    assert (load_counts(path, SHAPE) == 5).all()


def test_layers_that_the_gpu_does_not_hold_have_rows_without_counts(path: Path) -> None:
    add_counts(path, np.ones(SHAPE, dtype=np.int32))
    CountKeeper(torch.full((1, SHAPE[1]), 2, dtype=torch.int32), SHAPE[0], path).close()
    kept = load_counts(path, SHAPE)
    assert kept is not None
    assert (kept[0] == 3).all()
    assert (kept[1:] == 1).all()


def test_nothing_is_written_where_nothing_was_counted(path: Path) -> None:
    CountKeeper(torch.zeros(SHAPE, dtype=torch.int32), SHAPE[0], path).close()
    assert not path.exists()


@pytest.fixture
def tiny(tmp_path: Path):
    made = write_tiny_gguf(tmp_path / "model", V3)
    gguf = open_gguf(made.path)
    return EngineConfig(made.path, made.config_folder), gguf, resolve_model_config(
        gguf, made.config_folder
    )[0]  # fmt: skip


def test_use_is_known_once_enough_was_counted(tiny) -> None:
    config, gguf, model = tiny
    path, shape = counts_path(gguf), counts_shape(model)
    assert known_use(config, gguf, model) == (None, ())
    enough = np.zeros(shape, np.int32)
    enough[:, 1] = ENOUGH_CHOICES * shape[1] - 1
    add_counts(path, enough)
    assert known_use(config, gguf, model) == (None, ())
    enough[:] = 0
    enough[0, 0] = 1
    add_counts(path, enough)
    use, notes = known_use(config, gguf, model)
    assert use is not None
    assert notes == ()
    assert use.counts[0][0] == 1


def test_a_damaged_file_is_said_and_not_used(tiny) -> None:
    config, gguf, model = tiny
    path = counts_path(gguf)
    path.parent.mkdir(parents=True)
    path.write_text("no counts")
    use, (note,) = known_use(config, gguf, model)
    assert use is None
    assert str(path) in note


def test_random_weights_have_no_counts_unless_a_file_is_named(tiny, tmp_path: Path) -> None:
    config, gguf, model = tiny
    shape = counts_shape(model)
    plenty = np.full(shape, ENOUGH_CHOICES, np.int32)
    add_counts(counts_path(gguf), plenty)
    dummy = EngineConfig(config.gguf_path, dummy=DummyWeights())
    assert expert_counts.path_for(dummy, gguf) is None
    assert known_use(dummy, gguf, model) == (None, ())
    named = EngineConfig(config.gguf_path, dummy=DummyWeights(), expert_counts=tmp_path / "own.npy")
    assert known_use(named, gguf, model) == (None, ())
    add_counts(tmp_path / "own.npy", plenty)
    assert known_use(named, gguf, model)[0] is not None


def test_every_model_has_a_file_of_its_own(tiny) -> None:
    _, gguf, _ = tiny
    assert counts_path(gguf) != counts_path(open_gguf(demo_path()))
    assert counts_path(gguf) == counts_path(open_gguf(gguf.paths[0]))
    assert counts_path(gguf, {"XDG_STATE_HOME": "/state"}).is_relative_to("/state/ktops")
    assert counts_path(gguf, {}).is_relative_to(Path.home() / ".local" / "state")
