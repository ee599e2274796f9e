"""Help at 80 columns is stored text; it ends with examples and never grows wider."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktops.cli import COMMANDS
from ktops.commands import bench, config

GOLDEN = Path(__file__).parent / "golden"
OWN = [spec.name for spec in COMMANDS if spec.name != "doctor"]
OWN += [f"config {spec.name}" for spec in config.COMMANDS]
OWN += [f"bench {spec.name}" for spec in bench.COMMANDS]


def assert_golden(name: str, text: str) -> None:
    """Compare with the stored text; UPDATE_GOLDEN=1 stores the new one instead."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["", *OWN])
def test_help_is_the_stored_text(ktops, command):
    ran = ktops(*command.split(), "--help")
    assert ran.status == 0
    assert ran.stderr == ""
    assert_golden(f"help-{command.replace(' ', '-') or 'ktops'}", ran.stdout)


@pytest.mark.parametrize("command", ["", "doctor", *OWN])
def test_every_help_fits_80_columns_and_shows_examples(ktops, command):
    ran = ktops(*command.split(), "-h")
    assert ran.status == 0
    assert "\nExamples:\n" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_no_arguments_show_the_same_as_help(ktops):
    assert ktops().stdout == ktops("--help").stdout


def test_help_lists_every_exit_status(ktops):
    text = ktops("--help").stdout
    for status in ("0 done", "1 failed", "2 usage", "3 partial", "4 the machine", "130", "143"):
        assert status in text


def test_the_underscore_spellings_stay_out_of_the_help(ktops):
    text = ktops("serve", "--help").stdout
    assert "--cpu-infer" in text
    assert "--cpu_infer" not in text
