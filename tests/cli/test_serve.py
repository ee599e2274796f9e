"""`ktops serve` up to the point where it starts: flags, spellings, the model and its reason."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ktops.commands import serve as serve_command
from ktops.launch.serving import curl_line, is_loopback, sampling_defaults
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError


@pytest.fixture
def started(ktops, monkeypatch):
    """`started(*args)` runs `ktops serve` without starting; returns what it would start with."""

    def call(*args: str):
        seen = []
        monkeypatch.setattr(serve_command, "_run", lambda *given: seen.append(given))
        ran = ktops("serve", *args)
        assert ran.status == 0, ran.stderr
        _, settings, order, name = seen[0]
        return ran, settings, order, name

    return call


FLAGS = {
    "cpu-infer": ("3", "cpu_infer", 3),
    "gpu-memory": ("40GiB", "gpu_memory", "40GiB"),
    "gpu-experts": ("512", "gpu_experts", 512),
    "numa": ("off", "numa", "off"),
    "host": ("::1", "host", "::1"),
    "port": ("8000", "port", 8000),
    "max-new-tokens": ("1000", "max_new_tokens", 1000),
    "ctx-size": ("4096", "ctx_size", 4096),
    "api-key": ("sesame", "api_key", "sesame"),
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("separator", ["-", "_"])
def test_every_flag_has_its_underscore_spelling(started, flag, separator):
    text, name, value = FLAGS[flag]
    _, settings, _, _ = started(f"--{flag.replace('-', separator)}", text)
    assert getattr(settings, name) == value
    assert settings.origins[name] == f"--{flag}"


@pytest.mark.parametrize("separator", ["-", "_"])
def test_paths_and_the_served_name_have_their_underscore_spelling(started, separator):
    flags = [flag.replace("-", separator) for flag in ("gguf-path", "model-path")]
    name_flag = "served-model-name".replace("-", separator)
    _, _, order, name = started(
        f"--{flags[0]}", str(demo_path()), f"--{flags[1]}={demo_path()}", f"--{name_flag}", "mine"
    )
    assert (order.gguf_path, order.model_path, name) == (demo_path(), demo_path(), "mine")


def test_the_original_command_line_is_understood(started):
    _, settings, order, _ = started(
        "--model_path", str(demo_path()), "--gguf_path", str(demo_path()),
        "--cpu_infer", "65", "--max_new_tokens", "1000", "--port", "10002",
    )  # fmt: skip
    assert (settings.cpu_infer, settings.max_new_tokens, settings.port) == (65, 1000, 10002)
    assert order.gguf_path == demo_path()


def test_without_a_model_it_says_which_one_and_why(ktops, native_build):
    ran = ktops("serve", "--port", "0", "--dry-run")
    assert ran.status == 0
    assert "  model   demo (the embedded model, because nothing is downloaded yet)" in ran.stderr
    assert ran.stdout == ""


def test_settings_come_from_the_project_file(started, work_dir):
    (work_dir / "ktops.toml").write_text("port = 7000\ncpu_infer = 2\n")
    _, settings, _, _ = started("--port", "7001")
    assert (settings.port, settings.cpu_infer) == (7001, 2)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_wide_address_without_a_key_is_warned_about(started, host):
    ran, *_ = started("--host", host, "-q")
    assert "it asks for no key" in ran.stderr
    assert "--api-key" in ran.stderr


@pytest.mark.parametrize("args", [["--host", "0.0.0.0", "--api-key", "sesame"], ["--host", "::1"]])
def test_a_key_or_loopback_needs_no_warning_and_a_key_is_never_shown(started, args):
    ran, *_ = started(*args)
    assert "warning" not in ran.stderr
    assert "sesame" not in ran.stdout + ran.stderr


def test_a_model_that_is_not_downloaded_names_the_command(ktops, tmp_path):
    ran = ktops("serve", "r1-q4km", "--port", "0")
    assert ran.status == 1
    assert "r1-q4km is not downloaded" in ran.stderr
    assert "  Fix: ktops serve r1-q4km --yes   (fetches it first)\n" in ran.stderr
    assert "       ktops download r1-q4km\n" in ran.stderr


def test_a_missing_path_is_refused(ktops):
    ran = ktops("serve", "--port", "0", "--gguf-path", "nowhere.gguf")
    assert ran.status == 1
    assert "--gguf-path nowhere.gguf does not exist" in ran.stderr


def test_the_curl_line_survives_a_shell_and_names_no_key():
    line = curl_line("http://127.0.0.1:1", "it's mine", with_key=True)
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://127.0.0.1:1/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's mine"
    assert "Authorization: Bearer $KTOPS_API_KEY" in words
    assert "Authorization" not in curl_line("http://127.0.0.1:1", "m", with_key=False)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("a.b", False)],
)
def test_loopback_is_told_from_the_rest(host, local):
    assert is_loopback(host) is local


def test_sampling_follows_the_models_own_file(tmp_path: Path):
    path = tmp_path / "generation_config.json"
    assert sampling_defaults(tmp_path).temperature == 0.6
    path.write_text('{"temperature": 0.3, "top_p": 0.9, "eos_token_id": 1, "top_k": null}')
    sampling = sampling_defaults(tmp_path)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.9, 0)
    path.write_text('{"do_sample": false, "temperature": 0.3}')
    assert sampling_defaults(tmp_path).temperature == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": "hot"}', '{"top_p": true}'])
def test_a_broken_generation_config_is_named(tmp_path: Path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(KtopsError, match=r"generation_config\.json cannot be used") as caught:
        sampling_defaults(tmp_path)
    assert caught.value.hint


def test_random_weights_need_no_files_and_no_download(ktops, native_build):
    ran = ktops(
        "serve", "v2-lite-q4km", "--load-format", "dummy", "--num_hidden_layers", "2",
        "--port", "0", "--dry-run",
    )  # fmt: skip
    assert ran.status == 0, ran.stderr
    assert "  model   v2-lite-q4km (its shapes alone; nothing is fetched)" in ran.stderr
    assert "fetch" not in ran.stderr.replace("nothing is fetched", "").replace("was fetched", "")
    assert "  plan    CPU: " in ran.stderr


def test_random_weights_for_a_model_that_is_here_take_its_own_files(ktops, native_build):
    ran = ktops("serve", "demo", "--load-format", "dummy", "--port", "0", "--dry-run")
    assert ran.status == 0, ran.stderr
    assert "  model   demo (named on the command line)" in ran.stderr


def test_a_command_with_random_weights_is_given_again_with_them(started):
    _, _, order, _ = started("demo", "--load-format", "dummy", "--num-hidden-layers", "3")
    again = "ktops serve demo --load-format dummy --num-hidden-layers 3 --force"
    assert order.again("--force") == again


def test_layers_are_cut_from_random_weights_only(ktops):
    ran = ktops("serve", "demo", "--num-hidden-layers", "3")
    assert ran.status == 2
    assert "--num-hidden-layers goes with --load-format dummy alone" in ran.stderr
    assert "ktops serve --load-format dummy --num-hidden-layers 3" in ran.stderr


def test_a_number_of_layers_that_the_model_has_not_is_a_usage_error(ktops, native_build):
    ran = ktops(
        "serve", "demo", "--load-format", "dummy", "--num-hidden-layers", "99",
        "--port", "0", "--dry-run",
    )  # fmt: skip
    assert ran.status == 2
    assert "--num-hidden-layers 99: this model has" in ran.stderr
