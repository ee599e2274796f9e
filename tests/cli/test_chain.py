"""From a bare machine to an answer in one command, stopped and taken up again on the way."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import schemas
from fake_hub import FakeHub, running_hub
from serve_process import KEY

from ktops.launch import stages
from ktops.launch.stages import Order, obtain
from ktops.output import Mode, Output
from ktops.settings import load_settings
from ktops_engine import gpus
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError

WEIGHTS, CONFIG = "someone/tiny-GGUF", "someone/tiny"
SHARDS = tuple(sorted(path.name for path in demo_path().glob("*.gguf")))
COMMAND = ("ktops", "serve")


def write_catalogue(tmp_path: Path, **needs: int) -> None:
    """The user's catalogue knows one model, `tiny`, on the hub."""
    folder = tmp_path / "xdg_config_home/ktops"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "[tiny]",
        f'weights = {{ repo = "{WEIGHTS}", patterns = ["*.gguf"] }}',
        f'config = {{ repo = "{CONFIG}" }}',
        "needs = { " + ", ".join(f"{name} = {value}" for name, value in needs.items()) + " }",
    ]
    (folder / "catalogue.toml").write_text("\n".join(lines) + "\n")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native_build: object) -> Iterator[FakeHub]:
    """A hub with the demo model under another name; the kernels are built."""
    write_catalogue(tmp_path, disk_bytes=25_000_000)
    with running_hub() as fake:
        fake.repos[WEIGHTS] = {name: (demo_path() / name).read_bytes() for name in SHARDS}
        fake.repos[CONFIG] = {path.name: path.read_bytes() for path in demo_path().glob("*.json")}
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", fake.url)
        monkeypatch.setenv("KTOPS_MODELS", str(tmp_path / "models"))
        yield fake


def answer_of(url: str) -> dict:
    body = {"model": "tiny", "prompt": "The", "max_tokens": 3, "temperature": 0}
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60).json()


def names(events: list[dict]) -> list[str]:
    """The events in order, those that come several times once."""
    return list(dict.fromkeys(event["event"] for event in events))


def test_without_a_terminal_nothing_is_fetched_and_the_command_is_named(ktops, hub):
    ran = ktops("serve", "tiny", "--port", "0")
    assert ran.status == 1
    assert "tiny is not downloaded" in ran.stderr
    assert "  Fix: ktops serve tiny --yes   (fetches it first)\n" in ran.stderr
    assert (hub.data, hub.listings) == ([], [])


def test_yes_fetches_checks_loads_serves_and_answers(serve, hub):
    server = serve("tiny", "--yes", "--json")
    events = server.events_until("ready")
    assert [name for name in names(events) if name not in ("progress", "load")] == [
        "model", "check", "missing", "plan", "file", "loaded", "ready",
    ]  # fmt: skip
    assert events[0]["here"] is False
    assert sum(event["event"] == "check" for event in events) == 2
    for event in events:
        schemas.check("serve", event)
    answer = answer_of(events[-1]["url"])
    assert answer["usage"]["completion_tokens"] == 3
    assert server.end(signal.SIGTERM) == 143
    for stage in ("model", "fetch", "check", "plan", "load"):
        assert f"\n  {stage:<8}" in f"\n{server.stderr}"


def test_killed_while_it_fetches_the_same_command_goes_on_from_there(serve, hub):
    hub.add_fault(SHARDS[1], "stall", value=5_000_000)
    killed = serve("tiny", "--yes", "--json")
    while killed.wait_for("file")["name"] != SHARDS[0]:
        pass
    assert killed.process.poll() is None
    killed.process.kill()
    killed.process.wait()
    hub.released.set()
    before = len(hub.data)

    server = serve("tiny", "--yes", "--json")
    ready = server.wait_for("ready")
    again = hub.data[before:]
    assert {request.path for request in again} <= {SHARDS[1]}
    assert answer_of(ready["url"])["usage"]["completion_tokens"] == 3
    assert server.end(signal.SIGINT) == 130


def test_once_it_is_here_no_hub_is_asked(ktops, hub):
    obtain(Output(Mode.QUIET), load_settings(), Order(COMMAND, "tiny", assume_yes=True))
    hub.data.clear()
    hub.listings.clear()
    ran = ktops("serve", "tiny", "--port", "0", "--dry-run", "--json")
    assert names(schemas.documents(ran.stdout)) == ["model", "check", "plan", "dry-run"]
    assert (hub.data, hub.listings) == ([], [])


def test_a_machine_that_is_too_small_is_told_before_the_first_byte(ktops, hub, tmp_path):
    write_catalogue(tmp_path, ram_bytes=10**16, disk_bytes=25_000_000)
    ran = ktops("serve", "tiny", "--port", "0", "--yes", "--force")
    assert ran.status == 4
    assert "1 failure (mem.total)" in ran.stderr
    assert "error: tiny cannot be served here:\n  mem.total  " in ran.stderr
    assert "needs 10000 TB" in ran.stderr
    assert (hub.data, hub.listings) == ([], [])


@pytest.fixture
def free_ram(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`free_ram(n)` makes the engine see a machine with n bytes of free RAM."""
    real = gpus.detect_machine

    def shrink(num_bytes: int) -> None:
        monkeypatch.setattr(
            gpus, "detect_machine", lambda: replace(real(), available_ram_bytes=num_bytes)
        )

    return shrink


def planned_bytes(ktops) -> int:
    events = [json.loads(line) for line in dry_run(ktops, "--json").stdout.splitlines()]
    return next(event["bytes"] for event in events if event["event"] == "plan")


def dry_run(ktops, *args: str):
    return ktops("serve", "demo", "--port", "0", "--dry-run", *args)


def test_too_little_memory_stops_it_with_the_numbers_whatever_is_forced(
    ktops, free_ram, native_build
):
    free_ram(planned_bytes(ktops) - 1)
    for args in ((), ("--force",)):
        ran = dry_run(ktops, *args)
        assert ran.status == 4
        assert "GiB of RAM (weights" in ran.stderr
        assert "are available to this process" in ran.stderr


def test_hardly_enough_memory_is_a_warning_that_force_overrides(ktops, free_ram, native_build):
    free_ram(planned_bytes(ktops) + (1 << 20))
    ran = dry_run(ktops)
    assert ran.status == 4
    assert "only 1 MiB would be left" in ran.stderr
    assert "ktops serve demo --force   (goes on all the same)" in ran.stderr
    assert dry_run(ktops, "--force").status == 0


@pytest.fixture
def cores_are_a_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one warning that a test can bring about on any machine counts as a risk."""
    monkeypatch.setattr("ktops.launch.checklist.RISKS", ("cpu.cores",))


def test_a_risky_warning_stops_it_and_force_goes_on(ktops, hub, tmp_path, cores_are_a_risk):
    obtain(Output(Mode.QUIET), load_settings(), Order(COMMAND, "tiny", assume_yes=True))
    write_catalogue(tmp_path, cores=100_000)
    ran = ktops("serve", "tiny", "--port", "0", "--dry-run")
    assert ran.status == 1
    assert "1 warning (cpu.cores)" in ran.stderr
    assert "error: tiny would run badly here:\n  cpu.cores  " in ran.stderr
    assert "ktops serve tiny --force   (goes on all the same)" in ran.stderr
    forced = ktops("serve", "tiny", "--port", "0", "--dry-run", "--force")
    assert forced.status == 0
    assert "Nothing was fetched, built or started." in forced.stderr


def test_few_cores_are_named_and_stop_nothing(ktops, hub, tmp_path):
    obtain(Output(Mode.QUIET), load_settings(), Order(COMMAND, "tiny", assume_yes=True))
    write_catalogue(tmp_path, cores=100_000)
    ran = ktops("serve", "tiny", "--port", "0", "--dry-run")
    assert ran.status == 0
    assert "1 warning (cpu.cores)" in ran.stderr


def test_a_risk_is_told_before_anything_is_fetched(ktops, hub, tmp_path, cores_are_a_risk):
    write_catalogue(tmp_path, cores=100_000, disk_bytes=25_000_000)
    ran = ktops("serve", "tiny", "--port", "0", "--yes")
    assert ran.status == 1
    assert "error: tiny would run badly here:\n  cpu.cores  " in ran.stderr
    assert (hub.data, hub.listings) == ([], [])


def test_a_dry_run_says_what_would_be_fetched_and_fetches_nothing(ktops, hub, tmp_path):
    ran = ktops("serve", "tiny", "--port", "0", "--dry-run", "--json")
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert names(events) == ["model", "check", "missing", "dry-run"]
    assert events[2]["missing_bytes"] > 20_000_000
    assert events[-1]["fetch"] is True
    assert not list((tmp_path / "models").rglob("*.gguf"))


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """`person(reply)` sits at the terminal; returns the questions that were asked."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def sit(reply: str) -> list[str]:
        asked: list[str] = []
        monkeypatch.setattr(Output, "prompt", lambda self, words: asked.append(words) or reply)
        return asked

    return sit


def test_on_a_terminal_it_asks_with_the_size(hub, person):
    asked = person("y")
    choice = obtain(Output(), load_settings(), Order(COMMAND, "tiny"))
    assert choice.gguf_path.name == SHARDS[0]
    assert asked == ["  Fetch 23.5 MiB? [y/N] "]


@pytest.mark.parametrize("reply", ["", "n", "what?"])
def test_whoever_does_not_agree_gets_nothing_fetched(hub, person, reply, tmp_path):
    person(reply)
    with pytest.raises(KtopsError) as caught:
        obtain(Output(), load_settings(), Order(COMMAND, "tiny"))
    assert caught.value.code == "not-confirmed"
    assert caught.value.hint == "ktops serve tiny --yes"
    assert not list((tmp_path / "models").rglob("*.gguf"))


def test_missing_kernels_are_built_after_the_toolchain_was_checked(hub, monkeypatch, capsys):
    built = []
    monkeypatch.setattr(stages, "is_built", lambda: False)
    monkeypatch.setattr(stages, "build_stage", lambda output: built.append(output))
    obtain(Output(Mode.JSON), load_settings(), Order(COMMAND, "tiny", assume_yes=True))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    checks = next(event["checks"] for event in events if event["event"] == "check")
    ids = {check["id"] for check in checks}
    assert {"cc.version", "mem.available", "disk.space"} <= ids
    assert "lib.native" not in ids
    assert len(built) == 1


def test_a_registered_folder_that_is_spoilt_is_not_fetched_over(ktops, hub, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in SHARDS:
        (mine / name).write_bytes((demo_path() / name).read_bytes())
    assert ktops("models", "add", "tiny", str(mine)).status == 0
    (mine / SHARDS[1]).write_bytes(b"GGUF")
    ran = ktops("serve", "tiny", "--port", "0", "--yes")
    assert ran.status == 1
    assert "is not complete" in ran.stderr
    assert "--yes" not in ran.stderr
    assert hub.data == []


def test_the_order_is_given_again_with_its_paths():
    order = Order(COMMAND, gguf_path=Path("a b.gguf"), model_path=Path("config"))
    assert (
        order.again("--force") == "ktops serve --gguf-path 'a b.gguf' --model-path config --force"
    )
