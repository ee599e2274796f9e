"""For every group: a clean environment, and no network beyond this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktops_engine.native.build import BuildInfo, build_native

KEPT = {"KTOPS_TEST_CACHE"}

# Triton asks when a kernel is defined: without a GPU its kernels are interpreted, on the CPU.
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What engines keep between runs stays away from the notes of the person who runs the tests,
    also when an engine outlives a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell that runs tests in the background lets them, and their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests reaches them; the folders of XDG are empty."""
    for name in list(os.environ):
        if name.startswith(("KTOPS_", "USE_NUMA", "HF_", "MODELSCOPE_")) and name not in KEPT:
            monkeypatch.delenv(name)
    for name in ("CI", "NO_COLOR", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to any other machine is an error of the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6}:
            host = str(address[0])  # type: ignore[index]
            if not host.startswith("127.") and host not in {"::1", "localhost"}:
                raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def native_build() -> BuildInfo:
    """The native library, built by whoever needs it first and cached as for a user."""
    return build_native()
