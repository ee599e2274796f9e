"""Models that no catalogue knows: registered where they lie, downloaded, or of the user's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ktops.hub.choose import choose_model
from ktops.hub.store import State, find_folder, find_model
from ktops.settings import Settings, user_config_file
from ktops_engine.demo import demo_path

REPO = "unsloth/DeepSeek-R1-GGUF"
FIRST = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00001-of-00009.gguf"
THIRD = FIRST.replace("00001", "00003")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user's with a whole model, read-only like a shared disk."""
    folder = tmp_path / "my models" / "demo"
    folder.mkdir(parents=True)
    for path in demo_path().iterdir():
        if path.suffix in (".gguf", ".json"):
            shutil.copy(path, folder)
    folder.chmod(0o555)
    return folder


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_registered_folder_is_a_model_and_stays_as_it_is(ktops, own, models_dir):
    before = snapshot(own)
    ran = ktops("models", "add", "mine", str(own))
    assert ran.status == 0, ran.stderr
    assert "which stay in" in ran.stdout
    assert "  ktops serve mine" in ran.stdout
    choice = choose_model("mine", Settings(models_dir))
    assert choice.gguf_path.parent == own
    assert choice.model_path == own
    assert "mine" in ktops("models").stdout
    assert ktops("models", "-q").stdout == "demo\nmine\n"
    assert ktops("models", "path", "mine").stdout == f"{own}\n"
    assert str(own) in ktops("models", "show", "mine").stdout
    assert ktops("models", "verify", "mine").status == 0
    assert ktops("models", "remove", "mine").status == 0
    assert snapshot(own) == before
    assert ktops("models", "show", "mine").status == 2
    assert list(models_dir.glob(".registered/*")) == []


def test_a_name_is_looked_for_without_opening_the_models_that_are_here(
    ktops, own, models_dir, monkeypatch
):
    shutil.copytree(own, models_dir / "here")
    ktops("models", "add", "mine", str(own))

    def opened(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as patch:
        patch.setattr("ktops_engine.gguf.open_gguf", opened)
        ran = ktops("models", "show", "hera")
        assert (ran.status, "did you mean 'here'?" in ran.stderr) == (2, True)
        assert find_folder(models_dir / "nowhere", models_dir) is None
    assert find_folder(own, models_dir).name == "mine"
    assert find_folder(models_dir / "here", models_dir).name == "here"


def test_models_may_live_below_a_folder_named_cache(own, tmp_path):
    models_dir = tmp_path / ".cache" / "models"
    shutil.copytree(own, models_dir / "mine")
    assert choose_model("mine", Settings(models_dir)).gguf_path.parent == models_dir / "mine"


def test_it_is_the_one_that_serve_takes_when_nothing_else_is_here(ktops, own, models_dir):
    assert ktops("models", "add", "mine", str(own)).status == 0
    assert choose_model(None, Settings(models_dir)).name == "mine"


def test_a_registered_alias_of_the_catalogue_is_that_model_elsewhere(ktops, own, models_dir):
    assert ktops("models", "add", "v2-lite-q4km", str(own)).status == 0
    model = find_model("v2-lite-q4km", models_dir)
    assert (model.state, model.folder, model.is_registered) == (State.COMPLETE, own, True)
    assert model.entry.needs.cores == 4  # what the catalogue says
    ran = ktops("download", "v2-lite-q4km")
    assert ran.status == 1
    assert "is registered" in ran.stderr
    assert "ktops models remove v2-lite-q4km" in ran.stderr


def test_the_second_verify_compares_with_the_first(ktops, own, models_dir):
    own.chmod(0o755)
    assert ktops("models", "add", "mine", str(own)).status == 0
    assert "recorded" in ktops("models", "verify", "mine").stdout
    assert "mine is whole" in ktops("models", "verify", "mine").stdout
    shard = sorted(own.glob("*.gguf"))[-1]
    spoilt = bytearray(shard.read_bytes())
    spoilt[-100] ^= 1
    shard.write_bytes(spoilt)
    for _ in range(2):  # what was found spoilt is not forgotten: nobody will fetch it again
        ran = ktops("models", "verify", "mine")
        assert ran.status == 1
        assert f"{shard.name} is spoilt" in ran.stderr


def test_files_that_went_away_are_said_so(ktops, own, models_dir):
    assert ktops("models", "add", "mine", str(own)).status == 0
    own.chmod(0o755)
    shutil.rmtree(own)
    ran = ktops("models")
    assert ran.status == 0
    assert "mine is incomplete" in ran.stdout
    assert ktops("models", "show", "mine").status == 0
    assert ktops("models", "remove", "mine").status == 0


def test_a_config_folder_can_be_named(ktops, own, models_dir, tmp_path):
    config = tmp_path / "config-only"
    config.mkdir()
    ran = ktops("models", "add", "mine", str(own), "--config", str(config))
    assert ran.status == 1
    assert "has no config.json" in ran.stderr
    (config / "config.json").write_text("{}")
    assert ktops("models", "add", "mine", str(own), "--config", str(config)).status == 0
    assert choose_model("mine", Settings(models_dir)).model_path == config


def test_adding_twice_is_fine_and_another_path_is_not(ktops, own):
    assert ktops("models", "add", "mine", str(own)).status == 0
    assert ktops("models", "add", "mine", str(own)).status == 0
    ran = ktops("models", "add", "mine", str(demo_path()))
    assert ran.status == 2
    assert "  Fix: ktops models remove mine" in ran.stderr


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["demo", "{own}"], 2, "called demo already"),
        (["../x", "{own}"], 2, "cannot be a name"),
        (["-q", "mine"], 2, "a name and a path"),
        (["mine", "/nowhere"], 1, "/nowhere"),
        (["mine", "{own}/config.json"], 1, "config.json"),
    ],
)
def test_what_cannot_be_added_is_refused_with_a_reason(ktops, own, models_dir, args, status, words):
    ran = ktops("models", "add", *(arg.format(own=own) for arg in args))
    assert ran.status == status
    assert words in ran.stderr
    assert not models_dir.exists()


def test_a_name_whose_folder_is_here_is_taken(ktops, hub, own):
    assert ktops("download", "r1-q4km", "-q").status == 0
    assert ktops("models", "add", "r1-q4km", str(own)).status == 2


def test_a_path_or_a_config_is_for_add_alone(ktops, own):
    assert ktops("models", "show", "demo", str(own)).status == 2
    assert ktops("models", "show", "demo", "--config", str(own)).status == 2


def test_a_spoilt_registration_is_named_and_can_be_removed(ktops, own, models_dir):
    assert ktops("models", "add", "mine", str(own)).status == 0
    (models_dir / ".registered/mine/model.toml").write_text("weights = 3")
    ran = ktops("models")
    assert ran.status == 1
    assert "model.toml cannot be read" in ran.stderr
    assert "  Fix: ktops models remove mine" in ran.stderr
    assert ktops("models", "remove", "mine").status == 0
    assert ktops("models").status == 0


def test_a_downloaded_repository_is_a_model_by_its_folder(ktops, hub, models_dir):
    ran = ktops("download", f"hf:{REPO}", "--include", "*R1-Q4*")
    assert ran.status == 0
    assert "  ktops serve DeepSeek-R1-GGUF" in ran.stdout
    choice = choose_model("DeepSeek-R1-GGUF", Settings(models_dir))
    assert choice.gguf_path == models_dir / "DeepSeek-R1-GGUF" / FIRST
    assert "DeepSeek-R1-GGUF is whole" in ktops("models", "verify", "DeepSeek-R1-GGUF").stdout
    (models_dir / "DeepSeek-R1-GGUF" / THIRD).unlink()
    ran = ktops("models", "verify", "DeepSeek-R1-GGUF")
    assert f"  Fix: ktops download hf:{REPO} --include '*R1-Q4*'" in ran.stderr
    assert ktops("models", "remove", "DeepSeek-R1-GGUF", "--yes").status == 0
    assert not (models_dir / "DeepSeek-R1-GGUF").exists()


def test_a_download_that_broke_off_says_how_to_go_on_wherever_it_lies(ktops, hub, models_dir):
    hub.add_fault(THIRD, "status", 404, times=9)
    folder = models_dir / "mine"
    assert ktops("download", f"ms:{REPO}", "--include", "*Q4*", "--to", str(folder)).status == 1
    ran = ktops("models")
    assert "mine is incomplete" in ran.stdout
    assert f"Fix: ktops download ms:{REPO} --include '*Q4*' --to {folder}" in ran.stdout


def test_a_folder_of_two_models_asks_for_a_name(ktops, models_dir):
    folder = models_dir / "two"
    folder.mkdir(parents=True)
    for path in sorted(demo_path().glob("*.gguf")):
        shutil.copy(path, folder)
        shutil.copy(path, folder / path.name.replace("demo", "other"))
    ran = ktops("models", "show", "two")
    assert "it holds 2 models" in ran.stdout
    assert f"ktops models add NAME {folder}" in ran.stdout


def test_folders_without_weights_are_no_models(ktops, models_dir):
    (models_dir / "notes").mkdir(parents=True)
    (models_dir / "notes" / "read.me").touch()
    names = [model["alias"] for model in json.loads(ktops("models", "--json").stdout)["models"]]
    assert "notes" not in names


def test_the_users_catalogue_adds_and_replaces_names(ktops, hub, models_dir):
    write_catalogue(
        f"""
        [mine]
        weights = {{ repo = "{REPO}", patterns = ["*R1-Q4_K_M*"] }}

        [v3-q4km]
        title = "from a mirror"
        weights = {{ repo = "{REPO}", patterns = ["*R1-Q4_K_M*"] }}
        config = {{ repo = "deepseek-ai/DeepSeek-R1" }}
        needs = {{ ram_bytes = 5, disk_bytes = 7 }}
        """
    )
    listed = ktops("models").stdout
    assert "from a mirror" in listed
    assert ktops("download", "mine").status == 0
    assert find_model("mine", models_dir).state is State.COMPLETE
    entry = find_model("v3-q4km", models_dir).entry
    assert (entry.needs.ram_bytes, entry.needs.disk_bytes, entry.needs.cores) == (5, 7, 1)


@pytest.mark.parametrize(
    "content",
    [
        "[mine]\ntitle = 'no weights'",
        "[demo]\nweights = { repo = 'a/b', patterns = ['*'] }",
        "['a/b']\nweights = { repo = 'a/b', patterns = ['*'] }",
        "[mine]\nweights = { repo = 'a/b', patterns = ['*'] }\nneeds = { ram = 3 }",
        "[mine]\nweights = { repo = 'a/b', patterns = ['*'] }\nneeds = { cores = 'many' }",
        "[mine]\nweights = { repo = 'a/b', patterns = ['*'] }\nweight = 1",
        "mine = 3",
        "[mine",
    ],
)
def test_a_mistake_in_the_users_catalogue_is_named(ktops, content):
    write_catalogue(content)
    ran = ktops("models")
    assert ran.status == 2
    assert "catalogue.toml is no catalogue of models" in ran.stderr
    assert "  Fix: correct " in ran.stderr


def write_catalogue(content: str) -> None:
    path = user_config_file().with_name("catalogue.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
