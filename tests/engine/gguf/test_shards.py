"""Finding a model's files, and refusing sets that do not belong together."""

import os
import shutil
from pathlib import Path

import pytest
import tiny_gguf
from model_shapes import V2, V3
from raw_gguf import I32, STRING, U16, RawGguf, Tensor, array, scalar

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import open_gguf
from ktops_engine.gguf.shards import find_shards


@pytest.fixture
def split(tmp_path: Path) -> tuple[Path, ...]:
    """The three shards of a small model, in its own folder."""
    shape = V3
    return tiny_gguf.write_tiny_gguf(tmp_path / "model", shape, num_shards=3).paths


def failure(path: Path) -> KtopsError:
    with pytest.raises(KtopsError) as caught:
        open_gguf(path)
    assert caught.value.hint
    return caught.value


def shard(folder: Path, number: int, count: int = 2, **pairs: bytes) -> Path:
    """Write a hand-made shard whose split keys can be overridden or removed (None)."""
    values = {
        "general.architecture": scalar(STRING, "deepseek2"),
        "split.no": scalar(U16, number - 1),
        "split.count": scalar(U16, count),
        "split.tensors.count": scalar(U16, count),
    }
    values |= {key.replace("__", "."): value for key, value in pairs.items()}
    raw = RawGguf(
        [(key, value) for key, value in values.items() if value is not None],
        [Tensor(f"tensor{number}")],
    )
    return raw.write(folder / f"m-{number:05d}-of-{count:05d}.gguf")


def test_any_shard_and_the_folder_open_the_same_model(split: tuple[Path, ...]) -> None:
    models = [open_gguf(path) for path in (*split, split[0].parent, split[0].parent.parent)]
    assert all(model.paths == split for model in models)
    assert all(list(model.tensors) == list(models[0].tensors) for model in models)
    assert {info.shard for info in models[0].tensors.values()} == {0, 1, 2}


def test_a_split_model_reads_the_same_bytes_as_a_single_file(
    tmp_path: Path, split: tuple[Path, ...]
) -> None:
    single = open_gguf(tiny_gguf.write_tiny_gguf(tmp_path / "single", V3).path)
    parts = open_gguf(split[1])
    assert parts.total_bytes == single.total_bytes
    assert all(parts.read(name) == single.read(name) for name in single.tensors)


def test_links_into_a_content_store_are_followed_by_their_own_names(
    tmp_path: Path, split: tuple[Path, ...]
) -> None:
    snapshot, store = tmp_path / "snapshot", tmp_path / "store"
    snapshot.mkdir(), store.mkdir()
    for index, path in enumerate(split):
        path.rename(store / f"{index:064x}")
        (snapshot / path.name).symlink_to(store / f"{index:064x}")
    assert len(open_gguf(snapshot).paths) == 3


def test_missing_shards_are_named_with_their_folder(split: tuple[Path, ...]) -> None:
    split[1].unlink()
    for path in (split[0], split[2], split[0].parent):
        error = failure(path)
        assert error.code == "gguf-missing-shards"
        assert "1 of the 3 shards" in error.message
        assert split[1].name in error.message
        assert str(split[1].parent) in error.message


def test_a_renamed_shard_asks_for_its_name_back(tmp_path: Path, split: tuple[Path, ...]) -> None:
    renamed = split[1].rename(tmp_path / "weights.gguf")
    error = failure(renamed)
    assert error.code == "gguf-missing-shards"
    assert "shard 2 of 3" in error.message
    assert "-00002-of-00003.gguf" in error.hint


def test_a_folder_with_several_models_lists_them(tmp_path: Path, split: tuple[Path, ...]) -> None:
    for name in ("b.gguf", "a.gguf"):
        RawGguf().write(split[0].parent / name)
    error = failure(split[0].parent)
    assert error.code == "gguf-ambiguous"
    assert "3 models: a.gguf, b.gguf, tiny-00001-of-00003.gguf" in error.message


def test_two_subfolders_with_a_model_each_are_ambiguous(tmp_path: Path) -> None:
    for name in ("q4", "q8"):
        (tmp_path / name).mkdir()
        RawGguf().write(tmp_path / name / "model.gguf")
    error = failure(tmp_path)
    assert error.code == "gguf-ambiguous"
    assert "q4/model.gguf, q8/model.gguf" in error.message


def test_an_empty_folder_and_a_missing_path_are_not_found(tmp_path: Path) -> None:
    assert failure(tmp_path).code == "gguf-not-found"
    RawGguf().write(tmp_path / "model.gguf")
    error = failure(tmp_path / "typo.gguf")
    assert error.code == "gguf-not-found"
    assert "The folder holds: model.gguf" in error.message
    assert failure(tmp_path / "no" / "such.gguf").code == "gguf-not-found"


def test_a_dangling_link_says_that_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(tmp_path / "gone")
    error = failure(tmp_path / "model.gguf")
    assert error.code == "gguf-not-found"
    assert "link" in error.message


def test_a_name_too_long_for_the_system_is_one_message(tmp_path: Path) -> None:
    assert failure(tmp_path / ("x" * 300 + ".gguf")).code == "gguf-unreadable"


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    error = failure(tmp_path / "model.gguf")
    assert error.code == "gguf-not-found"
    assert "not a regular file" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_unreadable(tmp_path: Path) -> None:
    RawGguf().write(tmp_path / "model.gguf").chmod(0)
    assert failure(tmp_path / "model.gguf").code == "gguf-unreadable"


def test_a_shard_number_above_its_count_is_refused(tmp_path: Path) -> None:
    path = RawGguf().write(tmp_path / "m-00003-of-00002.gguf")
    with pytest.raises(KtopsError, match="shard 3 of 2"):
        find_shards(path)


def test_shards_of_two_models_are_told_apart_by_their_tensors(
    tmp_path: Path, split: tuple[Path, ...]
) -> None:
    other = tiny_gguf.write_tiny_gguf(tmp_path / "other", V2, num_shards=3)
    shutil.copy(other.paths[1], split[1])
    error = failure(split[0])
    assert error.code == "gguf-mismatched-shards"


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"split__count": scalar(U16, 3)}, "belongs to a set of 3"),
        ({"split__count": None}, "has no split.count"),
        ({"split__no": scalar(U16, 0)}, "shard 0 (counted from 0)"),
        ({"split__tensors__count": scalar(U16, 9)}, "a model of 9 tensors"),
        ({"general__architecture": scalar(STRING, "llama")}, "its general.architecture"),
    ],
)
def test_split_keys_must_agree_with_the_names(
    tmp_path: Path, second: dict[str, bytes], expected: str
) -> None:
    shard(tmp_path, 1)
    shard(tmp_path, 2, **second)
    error = failure(tmp_path)
    assert error.code == "gguf-mismatched-shards"
    assert expected in error.message
    assert "m-00002-of-00002.gguf" in error.message


def test_a_name_that_is_an_array_is_no_name_and_no_crash(tmp_path: Path) -> None:
    for number in (1, 2):
        shard(tmp_path, number, general__name=array(I32, [number, 2]))
    assert open_gguf(tmp_path).name is None


def test_a_split_key_of_another_type_is_damage(tmp_path: Path) -> None:
    shard(tmp_path, 1)
    shard(tmp_path, 2, split__no=scalar(STRING, "one"))
    assert failure(tmp_path).code == "gguf-corrupt"


def test_a_tensor_in_two_shards_is_refused_by_name(tmp_path: Path) -> None:
    for number in (1, 2):
        shard(tmp_path, number, split__tensors__count=None)
    RawGguf(
        [("split.no", scalar(U16, 1)), ("split.count", scalar(U16, 2))], [Tensor("tensor1")]
    ).write(tmp_path / "m-00002-of-00002.gguf")
    error = failure(tmp_path)
    assert error.code == "gguf-mismatched-shards"
    assert "tensor1 is also in m-00001-of-00002.gguf" in error.message
