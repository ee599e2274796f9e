"""Which findings the doctor may mend itself, with which commands, and how each is taken back."""

from __future__ import annotations

import sys

import pytest

from ktops_doctor import Remedy, apply, run_checks
from ktops_doctor.recorded_host import RecordedHost

from .conftest import libstdcxx

PYTHON = "/opt/ktops/bin/python"
PIP = f"{PYTHON} -m pip"
NVCC = {"status": 0, "stdout": "Cuda compilation tools, release 12.6, V12.6.20\n"}


@pytest.fixture
def remedy_of(server, r1):
    def find(check_id: str) -> Remedy | None:
        (result,) = run_checks([check_id], RecordedHost(server), r1)
        assert result.status != "ok", result
        return result.remedy

    return find


def old_conda(record, files=()):
    library = "/opt/conda/envs/x/lib/libstdc++.so.6"
    record["files"] |= dict.fromkeys(["/opt/conda/envs/x/conda-meta/history", *files], "")
    record["elf"][library] = libstdcxx(28)
    record["elf"]["/cache/libktops.so"]["needs"]["libstdc++.so.6"] = ["GLIBCXX_3.4.30"]
    record["probes"]["libraries"]["facts"]["libstdcxx"] = {"path": library}
    return library


def test_conda_replaces_its_own_library_and_goes_back_to_the_version_it_had(server, remedy_of):
    old_conda(server, ["/opt/conda/envs/x/conda-meta/libstdcxx-ng-11.2.0-h1234567_1.json"])
    server["programs"]["mamba"] = "/opt/conda/bin/mamba"
    remedy = remedy_of("lib.glibcxx")
    assert remedy.lines == ("mamba install -y -n x -c conda-forge libstdcxx-ng",)
    assert remedy.undo == "mamba install -y -n x libstdcxx-ng=11.2.0"


def test_without_conda_a_link_leads_to_the_systems_library_and_the_old_one_is_kept(
    server, remedy_of
):
    library = old_conda(server)
    remedy = remedy_of("lib.glibcxx")
    assert remedy.lines == (
        f"cp -aT --remove-destination {library} {library}.before-ktops",
        f"ln -sfT /usr/lib/x86_64-linux-gnu/libstdc++.so.6 {library}",
    )
    assert remedy.undo == f"mv -f {library}.before-ktops {library}"


def test_where_the_systems_library_is_old_too_and_conda_is_away_nothing_is_done(server, remedy_of):
    old_conda(server)
    server["elf"]["/usr/lib/x86_64-linux-gnu/libstdc++.so.6"] = libstdcxx(28)
    assert remedy_of("lib.glibcxx") is None


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        ({"built": False}, ""),
        ({"built": False, "damaged": "/c/libktops.so", "bytes": 7, "wanted_bytes": 9}, ""),
        ({"built": True, "path": "/c/libktops.so", "load_error": "file too short"}, " --force"),
    ],
)
def test_a_library_that_is_missing_or_broken_is_compiled(server, remedy_of, facts, options):
    server["probes"]["native"]["facts"] = facts
    remedy = remedy_of("lib.native")
    assert remedy.lines == (f"{PYTHON} -m ktops build{options}",)
    assert remedy.undo == ""


def test_a_library_that_wants_a_newer_libstdcxx_is_not_compiled_again(server, remedy_of):
    error = "libktops.so: version `GLIBCXX_3.4.30' not found"
    server["probes"]["native"]["facts"] = {"built": True, "path": "/c/l.so", "load_error": error}
    assert remedy_of("lib.native") is None


def test_missing_packages_are_installed_and_old_ones_come_back(server, remedy_of):
    server["requirements"]["ktops"] += ["typer>=0.29"]
    server["packages"]["numpy"] = "1.24.4"
    remedy = remedy_of("py.packages")
    assert remedy.lines == (f"{PIP} install 'numpy>=1.26' 'typer>=0.29'",)
    assert remedy.undo == f"{PIP} uninstall -y typer && {PIP} install numpy==1.24.4"


def test_a_package_that_does_not_import_is_installed_again_in_its_own_version(server, remedy_of):
    server["probes"]["imports"]["facts"]["numpy"] = {"error": "ImportError: numpy.core"}
    assert remedy_of("py.imports").lines == (
        f"{PIP} install --force-reinstall --no-deps numpy==2.3.1",
    )
    del server["packages"]["numpy"]
    assert remedy_of("py.imports") is None


def test_nothing_that_is_mended_needs_root(server, r1):
    broken = {**server, "commands": {}, "programs": {}, "probes": {}, "packages": {}, "disks": {}}
    for result in run_checks(None, RecordedHost(broken), r1):
        if result.remedy is not None:
            assert not any("sudo" in line for line in result.remedy.lines)


def script(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_commands_run_in_order_and_what_they_say_is_passed_on(tmp_path):
    mark = tmp_path / "mark"
    heard: list[str] = []
    remedy = Remedy("", (script(f"open({str(mark)!r}, 'w'); print('one')"), script("print('two')")))
    assert apply(remedy, heard.append) == ""
    assert heard == ["one", "two"]
    assert mark.exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/no/such/program",), "/no/such/program: No such file or directory"),
        (script("print('why'); exit(3)"), "ended with status 3: why"),
        (script("exit(3)"), "ended with status 3: it said nothing"),
        (script("import os; os.kill(os.getpid(), 9)"), "was ended by signal 9"),
    ],
)
def test_the_first_command_that_fails_is_the_last(tmp_path, command, reason):
    mark = tmp_path / "mark"
    remedy = Remedy("", (command, script(f"open({str(mark)!r}, 'w')")))
    assert apply(remedy, lambda line: None).endswith(reason)
    assert not mark.exists()
