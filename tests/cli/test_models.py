"""Which models are known, which are whole on the disk, and which one a command takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktops.hub.catalogue import find_entry, load_catalogue
from ktops.hub.choose import choose_model
from ktops.hub.store import State, fetch_command, inspect_model
from ktops.settings import Settings
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def put(models_dir):
    """`put("v2-lite-q4km")` places the demo's weights where that model belongs."""

    def place(alias: str, *, shards: slice = slice(None), config: bool = False) -> Path:
        folder = models_dir / alias / "weights"
        folder.mkdir(parents=True)
        for shard in sorted(demo_path().glob("*.gguf"))[shards]:
            (folder / shard.name).symlink_to(shard)
        if config:
            (models_dir / alias / "config").mkdir()
            (models_dir / alias / "config" / "config.json").write_text("{}")
        return folder

    return place


def choose(models_dir: Path, requested: str | None = None, default: str | None = None, **paths):
    settings = Settings(models_dir, default, origins={"default_model": "KTOPS_DEFAULT_MODEL"})
    return choose_model(requested, settings, **paths)


def test_the_catalogue_knows_r1_and_what_it_needs():
    entry = find_entry("r1-q4km")
    assert entry.weights_repo == "unsloth/DeepSeek-R1-GGUF"
    assert entry.patterns == ("*R1-Q4_K_M*",)
    assert entry.config_repo == "deepseek-ai/DeepSeek-R1"
    assert entry.needs.ram_bytes == 382 * 10**9
    assert entry.needs.vram_bytes == 14 * 10**9
    assert entry.needs.cores == 32
    assert list(load_catalogue()) == [
        "r1-q4km",
        "v3-q4km",
        "v2-chat-0628-q4km",
        "v2-lite-q4km",
        "demo",
    ]


def test_the_demo_is_always_whole(models_dir):
    demo = inspect_model(find_entry("demo"), models_dir)
    assert demo.state is State.COMPLETE
    assert demo.config_path == demo_path()


def test_nothing_there_is_not_downloaded(models_dir):
    model = inspect_model(find_entry("r1-q4km"), models_dir)
    assert (model.state, model.problem) == (State.ABSENT, "")
    assert model.size_bytes == 404_425_000_000


def test_whole_shards_in_a_subfolder_are_complete_with_their_config(models_dir, put):
    put("v2-lite-q4km", config=True)
    model = inspect_model(find_entry("v2-lite-q4km"), models_dir)
    assert model.state is State.COMPLETE
    assert model.config_path == models_dir / "v2-lite-q4km" / "config"
    assert model.size_bytes < 32 << 20


def test_a_missing_shard_is_incomplete_and_says_what_is_missing(models_dir, put):
    put("r1-q4km", shards=slice(1))
    model = inspect_model(find_entry("r1-q4km"), models_dir)
    assert model.state is State.INCOMPLETE
    assert "00002-of-00002" in model.problem


def test_a_download_without_a_finished_file_is_incomplete(models_dir):
    cache = models_dir / "r1-q4km" / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "x.incomplete").touch()
    assert inspect_model(find_entry("r1-q4km"), models_dir).state is State.INCOMPLETE


def test_the_fetch_command_names_a_folder_that_only_a_flag_named_and_survives_a_shell():
    entry = find_entry("r1-q4km")
    folder = Path("/data/my models")
    assert fetch_command(entry, Settings(folder)) == "ktops download r1-q4km"
    by_flag = Settings(folder, origins={"models_dir": "--models-dir"})
    assert fetch_command(entry, by_flag).endswith(" r1-q4km --models-dir '/data/my models'")


def test_with_nothing_downloaded_the_demo_is_taken(models_dir):
    choice = choose(models_dir)
    assert choice.name == "demo"
    assert "nothing is downloaded" in choice.reason


def test_the_one_downloaded_model_is_taken(models_dir, put):
    put("v2-lite-q4km")
    put("r1-q4km", shards=slice(1))  # an incomplete one does not count
    choice = choose(models_dir)
    assert choice.name == "v2-lite-q4km"
    assert choice.reason == "the one model that is downloaded"


def test_with_several_downloaded_the_demo_is_taken_and_says_so(models_dir, put):
    put("v2-lite-q4km")
    put("v3-q4km")
    choice = choose(models_dir)
    assert choice.name == "demo"
    assert "2 are downloaded and none is the default" in choice.reason


def test_the_configured_default_beats_the_downloaded_one(models_dir, put):
    put("v2-lite-q4km")
    choice = choose(models_dir, default="demo")
    assert choice.name == "demo"
    assert choice.reason == "the default of KTOPS_DEFAULT_MODEL"


def test_a_name_beats_the_default_and_a_path_beats_the_name(models_dir, put):
    put("v2-lite-q4km")
    assert choose(models_dir, "v2-lite-q4km", default="demo").name == "v2-lite-q4km"
    choice = choose(models_dir, "mine", gguf_path=demo_path())
    assert (choice.name, choice.gguf_path) == ("mine", demo_path())
    assert choose(models_dir, gguf_path=demo_path()).name is None


def test_a_given_config_folder_beats_the_stored_one(models_dir, put):
    put("v2-lite-q4km", config=True)
    assert choose(models_dir, "v2-lite-q4km", model_path=demo_path()).model_path == demo_path()


def test_a_known_model_that_is_absent_comes_with_the_command_that_fetches_it(models_dir):
    with pytest.raises(KtopsError) as caught:
        choose(models_dir, "r1-q4km")
    assert caught.value.code == "model-not-downloaded"
    assert str(models_dir / "r1-q4km") in caught.value.message
    assert caught.value.hint.splitlines()[0].startswith("ktops download r1-q4km")
    assert "--gguf-path" in caught.value.hint


def test_an_incomplete_model_says_what_is_missing(models_dir, put):
    put("r1-q4km", shards=slice(1))
    with pytest.raises(KtopsError, match="00002-of-00002") as caught:
        choose(models_dir, "r1-q4km")
    assert caught.value.code == "model-incomplete"


@pytest.mark.parametrize(
    ("paths", "hint"),
    [
        ({"gguf_path": Path("/nowhere/x.gguf")}, "ls /nowhere"),
        ({"model_path": Path("/nowhere/at/all")}, "ls /nowhere/at"),
        (
            {"model_path": Path("deepseek-ai/DeepSeek-R1")},
            "ktops download hf:deepseek-ai/DeepSeek-R1",
        ),
        ({"model_path": Path("/tmp")}, "config.json"),
    ],
)
def test_a_path_that_is_not_there_is_refused(models_dir, paths, hint):
    with pytest.raises(KtopsError) as caught:
        choose(models_dir, **paths)
    assert caught.value.code == "no-such-path"
    assert hint in caught.value.hint


def test_models_lists_every_state(ktops, models_dir, put, monkeypatch):
    monkeypatch.setenv("KTOPS_MODELS", str(models_dir))
    monkeypatch.setenv("KTOPS_DEFAULT_MODEL", "v2-lite-q4km")
    put("v2-lite-q4km")
    put("r1-q4km", shards=slice(1))
    ran = ktops("models")
    assert ran.status == 0
    assert ran.stderr == ""
    assert "* v2-lite-q4km" in ran.stdout
    assert "not downloaded" in ran.stdout
    assert "r1-q4km is incomplete: " in ran.stdout
    assert "  Fix: ktops download r1-q4km" in ran.stdout
    assert ktops("models", "-q").stdout == "v2-lite-q4km\ndemo\n"


def test_models_as_json_is_one_document(ktops, models_dir):
    ran = ktops("models", "--json", "--models-dir", str(models_dir))
    models = {model["alias"]: model for model in ran.document["models"]}
    assert ran.document["schema_version"] == 1
    assert models["demo"]["state"] == "complete"
    assert models["r1-q4km"]["state"] == "not-downloaded"
    assert models["r1-q4km"]["needs"]["ram_bytes"] == 382 * 10**9


def test_models_gguf_that_is_text_is_reported_not_raised(ktops, models_dir):
    folder = models_dir / "r1-q4km"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_text("<html>sign in</html>")
    ran = ktops("models", "--models-dir", str(models_dir))
    assert ran.status == 0
    assert "r1-q4km is incomplete" in ran.stdout
