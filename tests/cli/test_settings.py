"""flag > KTOPS_* > ./ktops.toml > XDG config > default, and a wrong value names its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktops.settings import ALL_GPU_MEMORY, resolve_settings
from ktops_engine.errors import KtopsError


@pytest.fixture
def resolve(tmp_path):
    """`resolve(flags, environ, project=, user=)`; the last two are TOML texts."""

    def call(flags=None, environ=None, project=None, user=None):
        folder, config, data = (tmp_path / name for name in ("here", "config", "data"))
        for path in (folder, config):
            path.mkdir(exist_ok=True)
        if project is not None:
            (folder / "ktops.toml").write_text(project, encoding="utf-8")
        if user is not None:
            (config / "config.toml").write_text(user, encoding="utf-8")
        return resolve_settings(
            flags or {}, environ=environ or {}, folder=folder, config_dir=config, data_dir=data
        )

    return call


def test_defaults_are_loopback_and_the_original_port(resolve, tmp_path):
    settings = resolve()
    assert (settings.host, settings.port) == ("127.0.0.1", 10002)
    assert settings.models_dir == tmp_path / "data" / "models"
    assert set(settings.origins.values()) == {"default"}


def test_each_source_beats_the_ones_below_it(resolve, tmp_path):
    sources = {
        "flags": {"port": 1},
        "environ": {"KTOPS_PORT": "2"},
        "project": "port = 3",
        "user": "port = 4",
    }
    origins = [
        "--port",
        "KTOPS_PORT",
        str(tmp_path / "here" / "ktops.toml"),
        str(tmp_path / "config" / "config.toml"),
    ]
    for number, origin in enumerate(origins, start=1):
        settings = resolve(**sources)
        assert settings.port == number
        assert settings.origins["port"] == origin
        sources.pop(next(iter(sources)))
        for file in (tmp_path / "here" / "ktops.toml", tmp_path / "config" / "config.toml"):
            file.unlink(missing_ok=True)


def test_sources_are_joined_value_by_value(resolve):
    settings = resolve({"ctx_size": 8}, {"KTOPS_HOST": "::1"}, "cpu_infer = 4", "port = 9")
    assert (settings.ctx_size, settings.host, settings.cpu_infer, settings.port) == (8, "::1", 4, 9)


def test_a_flag_that_is_none_and_an_empty_variable_count_as_not_given(resolve):
    assert resolve({"port": None}, {"KTOPS_PORT": ""}, "port = 7").port == 7


def test_a_relative_path_starts_at_the_file_that_holds_it(resolve, tmp_path):
    assert resolve(user="models_dir = 'm'").models_dir == tmp_path / "config" / "m"
    assert resolve({"models_dir": Path("m")}).models_dir == tmp_path / "here" / "m"


def test_a_home_folder_is_expanded(resolve):
    assert resolve(environ={"KTOPS_MODELS": "~/m"}).models_dir == Path.home() / "m"


def test_the_api_key_is_not_in_the_repr(resolve):
    settings = resolve({"api_key": "sesame"})
    assert settings.api_key == "sesame"
    assert "sesame" not in repr(settings)


@pytest.mark.parametrize(
    ("sources", "place"),
    [
        ({"flags": {"cpu_infer": 0}}, "--cpu-infer"),
        ({"flags": {"cpu_infer": -3}}, "--cpu-infer"),
        ({"flags": {"port": 65536}}, "--port"),
        ({"environ": {"KTOPS_PORT": "http"}}, "KTOPS_PORT"),
        ({"environ": {"KTOPS_CTX_SIZE": "0"}}, "KTOPS_CTX_SIZE"),
        ({"flags": {"gpu_memory": "40"}}, "--gpu-memory"),
        ({"environ": {"KTOPS_GPU_MEMORY": "0GiB"}}, "KTOPS_GPU_MEMORY"),
        ({"project": "gpu_memory = 40"}, "gpu_memory in "),
        ({"flags": {"gpu_experts": -1}}, "--gpu-experts"),
        ({"environ": {"KTOPS_NUMA": "maybe"}}, "KTOPS_NUMA"),
        ({"flags": {"numa": "1"}}, "--numa"),
        ({"project": "port = '8000.5'"}, "port in "),
        ({"project": "port = true"}, "port in "),
        ({"project": "cpu_infer = 1.5"}, "cpu_infer in "),
        ({"user": "host = 1"}, "host in "),
        ({"user": "default_model = ''"}, "default_model in "),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(resolve, sources, place):
    with pytest.raises(KtopsError) as caught:
        resolve(**sources)
    assert caught.value.code == "invalid-setting"
    assert caught.value.exit_status == 2
    assert caught.value.message.startswith(place)
    assert caught.value.hint


def test_broken_toml_names_the_file_and_the_line(resolve):
    with pytest.raises(KtopsError, match=r"ktops\.toml is not valid TOML: .*line 2") as caught:
        resolve(project="port = 1\nhost = = 1\n")
    assert caught.value.code == "invalid-config"


def test_a_file_that_is_not_text_is_refused(resolve, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ktops.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(KtopsError, match="not valid TOML"):
        resolve()


def test_a_folder_named_like_the_file_is_refused(resolve, tmp_path):
    (tmp_path / "here" / "ktops.toml").mkdir(parents=True)
    with pytest.raises(KtopsError, match="cannot be read"):
        resolve()


@pytest.mark.parametrize(("key", "guess"), [("prot", "port"), ("cpu-infer", "cpu_infer")])
def test_an_unknown_key_is_named_with_a_guess(resolve, key, guess):
    with pytest.raises(KtopsError, match=f"did you mean '{guess}'") as caught:
        resolve(project=f"{key} = 1")
    assert "ktops.toml" in caught.value.message


def test_an_unknown_key_far_from_any_setting_gets_no_guess(resolve):
    with pytest.raises(KtopsError) as caught:
        resolve(user="colour = 1")
    assert "did you mean" not in caught.value.message
    assert "default_model" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "kept", "num_bytes"),
    [("40GiB", "40GiB", 40 << 30), (" 14 GB", "14 GB", 14e9), ("ALL", "all", ALL_GPU_MEMORY)],
)
def test_gpu_memory_is_an_amount_or_all(resolve, words, kept, num_bytes):
    settings = resolve({}, {"KTOPS_GPU_MEMORY": words})
    assert (settings.gpu_memory, settings.gpu_memory_bytes) == (kept, num_bytes)
    assert resolve().gpu_memory_bytes is None


def test_gpu_experts_are_a_number_or_the_plans(resolve):
    assert resolve({"gpu_experts": 0}, {"KTOPS_GPU_EXPERTS": "3"}).most_gpu_experts == 0
    assert resolve({}, {"KTOPS_GPU_EXPERTS": "3"}).most_gpu_experts == 3
    assert resolve({"gpu_experts": "auto"}, {"KTOPS_GPU_EXPERTS": "3"}).most_gpu_experts is None


def test_auto_is_a_number_of_threads_to_find_out(resolve):
    settings = resolve({"cpu_infer": "auto"}, {"KTOPS_CPU_INFER": "3"})
    assert (settings.cpu_infer, settings.cpu_threads) == ("auto", None)
    assert resolve({}, {"KTOPS_CPU_INFER": "3"}).cpu_threads == 3
    assert resolve({}, {}).cpu_threads is None
