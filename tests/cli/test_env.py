"""`ktops env` and `ktops version`: facts to paste, without secrets and without imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ktops.commands import env as env_command


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(env_command.shutil, "which", lambda name: None)


def test_env_shows_versions_and_machine(ktops):
    ran = ktops("env")
    assert ran.status == 0
    assert ran.stderr == ""
    for name in ("ktops", "python", "os", "kernel", "cpu", "ram", "gpu", "native", "packages"):
        assert f"\n{name} " in f"\n{ran.stdout}"
    assert "physical cores usable" in ran.stdout


def test_env_as_json_is_one_document(ktops):
    document = ktops("env", "--json").document
    assert document["schema_version"] == 1
    assert document["gpu"] == []
    assert document["packages"]["typer"]
    assert document["settings"] == {}


def test_env_masks_secrets_wherever_they_stand(ktops, work_dir, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    monkeypatch.setenv("KTOPS_API_KEY", "sesame1")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:sesame2@mirror.example/x")
    monkeypatch.setenv("KTOPS_PORT", "9000")
    for args in (["env"], ["env", "--json"]):
        text = ktops(*args).stdout
        assert "sesame" not in text
        assert "9000" in text
        assert "https://***@mirror.example/x" in text
    assert ktops("env", "--json").document["settings"]["api_key"]["origin"] == "KTOPS_API_KEY"


def test_env_reports_a_broken_configuration_instead_of_failing(ktops, work_dir):
    (work_dir / "ktops.toml").write_text("prot = 1")
    ran = ktops("env")
    assert ran.status == 0
    assert "did you mean 'port'" in ran.stdout


def test_env_lists_gpus_as_nvidia_smi_names_them(ktops, monkeypatch):
    line = "NVIDIA L40S, 49140 MiB, 535.161"
    monkeypatch.setattr(env_command.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        env_command.subprocess,
        "run",
        lambda command, **how: subprocess.CompletedProcess(command, 0, f"{line}\n", ""),
    )
    assert ktops("env", "--json").document["gpu"] == [line]


def test_env_says_why_nvidia_smi_failed(ktops, monkeypatch):
    def late(command, **how):
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(env_command.shutil, "which", lambda name: name)
    monkeypatch.setattr(env_command.subprocess, "run", late)
    assert "nvidia-smi failed" in ktops("env").stdout


def test_env_imports_no_torch(ktops):
    code = (
        "import sys\nfrom ktops.cli import run\nrun(['env'])\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_version_in_every_form(ktops):
    number = ktops("version", "-q").stdout.strip()
    assert ktops("version").stdout == f"ktops {number}\n"
    assert ktops("--version").stdout == f"ktops {number}\n"
    assert ktops("version", "--json").document["ktops"] == number
    assert ktops("--json", "version").document["ktops"] == number
    assert ktops("-q", "version").stdout == f"{number}\n"
