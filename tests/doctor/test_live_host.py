"""The door to this machine: what breaks behind it comes back as an answer."""

from __future__ import annotations

import importlib.metadata
import os
import select
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ktops_doctor import LiveHost, run_checks
from ktops_doctor.live_host import _file_system
from ktops_doctor.recorded_host import RecordedHost, RecordingHost


@pytest.fixture
def host() -> LiveHost:
    return LiveHost()


def test_what_is_missing_is_no_error(host, tmp_path):
    none = str(tmp_path / "none")
    assert host.read_text(none) is None
    assert host.read_text(str(tmp_path)) is None
    assert host.list_dir(none) == ()
    assert not host.exists(none)
    assert not host.exists("/x" * 5000)
    assert host.elf(none) is None
    assert host.env("NO_SUCH_VARIABLE") == ""
    assert host.which("no-such-program") is None
    assert host.package_version("no-such-package") is None
    assert host.requirements("no-such-package") == ()


def test_a_command_that_does_not_exist_did_not_start(host):
    output = host.run("/no/such/program")
    assert output.status is None
    assert not output.ok


def test_a_command_that_hangs_is_killed_with_its_children(host, tmp_path):
    alive = tmp_path / "alive"  # held open by the shell and by its child
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        output = host.run("sh", "-c", f"exec 3>{alive}; sleep 600 & wait", time_limit=0.5)
        assert output.timed_out
        ended = select.poll()
        ended.register(reader, select.POLLHUP)
        assert ended.poll()  # nobody holds it any more
    finally:
        os.close(reader)


def test_a_command_is_run_once_however_often_it_is_asked_for(host, tmp_path):
    count = tmp_path / "count"
    for _ in range(3):
        host.run("sh", "-c", f"echo x >> {count}")
    assert count.read_text() == "x\n"


def test_commands_answer_in_the_c_locale(host, monkeypatch):
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert host.run("sh", "-c", "echo $LC_ALL").stdout == "C\n"


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_the_one_above(host, tmp_path):
    disk = host.disk(str(tmp_path / "a" / "b"))
    assert disk is not None
    assert disk.path == str(tmp_path)
    assert 0 <= disk.free_bytes <= disk.total_bytes
    assert disk.writable


def test_the_longest_mount_point_names_the_file_system():
    mounts = "/dev/a / ext4 rw\n/dev/b /data xfs rw\ntmpfs /data/my\\040dir tmpfs rw\nbad\n"
    assert _file_system("/home/u", mounts) == "ext4"
    assert _file_system("/data/models", mounts) == "xfs"
    assert _file_system("/database", mounts) == "ext4"
    assert _file_system("/data/my dir/x", mounts) == "tmpfs"


def test_a_port_that_is_held_names_this_process(host, r1):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        state = host.port("127.0.0.1", port)
        assert not state.free
        assert state.pid == os.getpid()
        (result,) = run_checks(["net.port"], host, replace(r1, port=port))
        assert result.status == "fail"
        assert f"(pid {os.getpid()})" in result.value
        assert result.fix.startswith(f"kill {os.getpid()}   # or: ktops serve r1-q4km --port ")
    assert LiveHost().port("127.0.0.1", port).free


def test_an_address_of_another_machine_is_not_ours_to_listen_on(host):
    state = host.port("192.0.2.1", 10002)
    assert not state.free
    assert state.pid is None


def package(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libcudart.so.12: cannot open')", "ImportError: libcudart.so.12"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("this is no Python", "SyntaxError"),
        ("import os; os._exit(7)", "ended with status 7"),
    ],
)
def test_a_torch_that_breaks_breaks_only_the_child(host, r1, tmp_path, monkeypatch, source, said):
    package(tmp_path, "torch", source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (torch,) = run_checks(["py.torch"], host, r1)
    assert torch.status == "fail"
    assert said in torch.detail


def test_a_folder_named_torch_where_the_user_stands_is_not_imported(
    host, r1, tmp_path, monkeypatch
):
    package(tmp_path, "numpy", "raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    (result,) = run_checks(["py.imports"], host, r1)
    assert result.status == "ok"


def test_an_engine_that_does_not_import_is_named(host, r1, tmp_path, monkeypatch):
    package(tmp_path, "ktops_engine", "raise RuntimeError('half an upgrade')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engine, native = run_checks(["lib.engine", "lib.native"], host, r1)
    assert (engine.status, engine.detail) == ("fail", "RuntimeError: half an upgrade")
    assert (native.status, native.value) == ("skip", "waits for lib.engine")


def engine_with(folder: Path, library: Path) -> None:
    """An engine whose build records `library`, and whose loader is the real dynamic loader."""
    package(folder, "ktops_engine", "")
    package(folder / "ktops_engine", "native", "")
    native = folder / "ktops_engine" / "native"
    (native / "build.py").write_text(
        "from pathlib import Path\nfrom types import SimpleNamespace\n"
        "def find_current():\n"
        f"    path = Path({str(library)!r})\n"
        "    return SimpleNamespace(path=path, numa=False, compiler='g++ 12', built_at='2026')"
        " if path.exists() else None\n"
    )
    (native / "load.py").write_text(
        "import ctypes\ndef load_native(info):\n    ctypes.CDLL(str(info.path))\n"
    )


def test_a_truncated_native_library_does_not_load_and_a_deleted_one_is_not_built(
    r1, tmp_path, monkeypatch, native_build
):
    library = tmp_path / "libktops.so"
    library.write_bytes(native_build.path.read_bytes()[:5000])
    engine_with(tmp_path, library)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (result,) = run_checks(["lib.native"], LiveHost(), r1)
    assert (result.status, result.fix) == ("fail", "ktops build --force")
    assert str(library) in result.value
    library.unlink()
    (result,) = run_checks(["lib.native"], LiveHost(), r1)
    assert (result.status, result.fix) == ("warn", "ktops build")


def test_the_real_native_library_is_found_loaded_and_free_of_libstdcxx(host, r1, native_build):
    native, glibcxx = run_checks(["lib.native", "lib.glibcxx"], host, r1)
    assert native.status == "ok"
    assert "kernels" in native.value
    assert glibcxx.value.startswith("libktops has its own (static)")


def test_an_empty_cache_means_not_built(r1, tmp_path, monkeypatch):
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path))
    (result,) = run_checks(["lib.native"], LiveHost(), r1)
    assert (result.status, result.fix) == ("warn", "ktops build")


def test_the_embedded_model_is_whole_and_a_text_file_named_gguf_is_not(host, demo, tmp_path):
    (result,) = run_checks(["model.files"], host, demo)
    assert result.status == "ok", result.summary
    text = tmp_path / "model.gguf"
    text.write_text("<html>404</html>")
    (result,) = run_checks(["model.files"], host, replace(demo, weights=str(text)))
    assert result.status == "fail"
    assert str(text) in result.detail


def test_a_record_of_this_machine_replays_with_the_same_results(host, r1, tmp_path):
    quick = ["sys.os", "cpu.cores", "cpu.isa", "mem.total", "mem.limit", "numa.nodes", "disk.type"]
    recorder = RecordingHost(host)
    live = run_checks(quick, recorder, r1)
    recorder.save(tmp_path / "host.json")
    replayed = run_checks(quick, RecordedHost.load(tmp_path / "host.json"), r1)
    assert [(r.id, r.status, r.summary) for r in live] == [
        (r.id, r.status, r.summary) for r in replayed
    ]


def test_what_is_written_down_of_a_machine_holds_no_token_and_no_password(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ABCdef123")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:1")
    stored = tmp_path / "token"
    stored.write_text("hf_stored99\n")
    recorder = RecordingHost(LiveHost())
    assert recorder.env("HF_TOKEN") == "hf_ABCdef123"
    recorder.env("HTTPS_PROXY")
    recorder.read_text(str(stored))
    recorder.save(tmp_path / "host.json")
    replayed = RecordedHost.load(tmp_path / "host.json")
    assert replayed.env("HF_TOKEN") == "hf_xxxxxxxxx"
    assert replayed.env("HTTPS_PROXY") == "http://proxy:1"
    assert replayed.read_text(str(stored)) == "hf_xxxxxxxx\n"


def test_a_variable_that_is_set_and_empty_is_told_from_one_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("KTOPS_EMPTY", "")
    monkeypatch.delenv("KTOPS_ABSENT", raising=False)
    recorder = RecordingHost(LiveHost())
    names = ("KTOPS_EMPTY", "KTOPS_ABSENT")
    assert [recorder.is_set(name) for name in names] == [True, False]
    recorder.save(tmp_path / "host.json")
    replayed = RecordedHost.load(tmp_path / "host.json")
    assert [(replayed.is_set(name), replayed.env(name)) for name in names] == [
        (True, ""), (False, "")
    ]  # fmt: skip


def test_a_checkout_that_nobody_installed_says_itself_what_it_requires(host, monkeypatch):
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", absent)
    assert any(requirement.startswith("torch>=") for requirement in host.requirements("ktops"))
    assert host.requirements("another") == ()


def test_this_interpreter_is_described(host):
    facts = host.python()
    assert facts.version == sys.version_info[:3]
    assert facts.executable == sys.executable


def test_importing_the_doctor_imports_nothing_outside_the_standard_library(host):
    code = (
        "import sys, ktops_doctor; "
        "print(sorted({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    output = host.run(
        sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"
    )
    assert output.stdout == "['__main__', 'ktops_doctor', 'ktops_engine']\n", output.stderr
