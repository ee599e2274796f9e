"""Toolchain and native library: one fault at a time on the healthy server."""

from __future__ import annotations

import pytest

PIP = "/opt/ktops/bin/python -m pip install"


def test_an_old_compiler_is_passed_over_for_a_versioned_one(ask, server, r1):
    server["commands"]["g++ -dumpfullversion -dumpversion"]["stdout"] = "9.4.0\n"
    server["programs"]["g++-12"] = "/usr/bin/g++-12"
    server["commands"]["g++-12 -dumpfullversion -dumpversion"] = {"status": 0, "stdout": "12.3.0"}
    assert ask(server, r1, "cc.version").value == "g++-12 12.3.0"


@pytest.mark.parametrize(
    ("os_release", "fix"),
    [
        ("ID=debian\n", "sudo apt-get install -y g++"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "sudo dnf install -y gcc-c++"),
        ("ID=arch\n", "sudo pacman -S --noconfirm gcc"),
        ("ID=opensuse-leap\nID_LIKE='suse opensuse'\n", "sudo zypper install -y gcc-c++"),
        ("ID=nixos\n", "conda install -y -c conda-forge gxx"),
    ],
)
def test_a_missing_compiler_is_installed_in_the_words_of_the_distribution(
    ask, server, r1, os_release, fix
):
    server["files"]["/etc/os-release"] = os_release
    del server["programs"]["g++"]
    server["probes"]["native"] = {"facts": {"built": False}}
    result = ask(server, r1, "cc.version")
    assert (result.status, result.value, result.fix) == ("fail", "g++ is not installed", fix)


def test_a_missing_compiler_is_a_warning_while_the_library_is_there(ask, server, r1):
    server["commands"]["g++ -dumpfullversion -dumpversion"]["stdout"] = "9.4.0\n"
    result = ask(server, r1, "cc.version")
    assert (result.status, result.value) == ("warn", "g++ 9.4.0")
    assert result.fix == "conda install -y -c conda-forge gxx"


@pytest.mark.parametrize(("tool", "answer"), [("cmake", "cmake version 3.16.3"), ("ninja", "")])
def test_build_tools_come_from_pypi(ask, server, r1, tool, answer):
    path = f"/opt/ktops/bin/{tool}"
    server["commands"][f"{path} --version"] = {"status": 0 if answer else 1, "stdout": answer}
    assert ask(server, r1, f"cc.{tool}").fix.startswith(f"{PIP} ")
    del server["files"][path]
    assert ask(server, r1, f"cc.{tool}").value == f"{tool} is not installed"


def test_a_missing_assembler_is_a_warning(ask, server, r1):
    del server["commands"]["as --version"]
    assert ask(server, r1, "cc.assembler").fix == "sudo apt-get install -y binutils"


NATIVE = {"built": True, "path": "/cache/libktops.so", "numa": True}


@pytest.mark.parametrize(
    ("probe", "check_id", "status", "fix"),
    [
        ({"facts": {"built": False}}, "lib.native", "warn", "ktops build"),
        (
            {"facts": {**NATIVE, "load_error": "file too short"}},
            "lib.native",
            "fail",
            "ktops build --force",
        ),
        (
            {"facts": NATIVE, "error": "ended by SIGILL"},
            "lib.native",
            "fail",
            "ktops build --force",
        ),
        (
            {"facts": {"find_error": "PermissionError: /root"}},
            "lib.native",
            "fail",
            "ktops build --force",
        ),
        (
            {"facts": {"import_error": "SyntaxError: invalid syntax"}},
            "lib.engine",
            "fail",
            "./install.sh   # in the folder that ktops was installed from",
        ),
        (
            {"error": "no answer within 8 s"},
            "lib.engine",
            "fail",
            "./install.sh   # in the folder that ktops was installed from",
        ),
    ],
)
def test_each_state_of_the_native_library_is_told_apart(
    ask, server, r1, probe, check_id, status, fix
):
    server["probes"]["native"] = probe
    result = ask(server, r1, check_id)
    assert (result.status, result.fix) == (status, fix)


def test_a_library_path_that_puts_an_old_libstdcxx_in_front_is_taken_away(ask, server, r1):
    server["env"]["LD_LIBRARY_PATH"] = "/opt/matlab/lib"
    server["elf"]["/opt/matlab/lib/libstdc++.so.6"] = {"defines": ["GLIBCXX_3.4.20"]}
    # The child could not say what it loads: the places are searched as the loader would.
    server["probes"]["libraries"] = {
        "facts": {"libraries": {"torch": ["/torch/lib/libtorch_cpu.so"]}},
        "error": "ended by SIGSEGV",
    }
    result = ask(server, r1, "lib.glibcxx")
    assert result.fix.startswith("unset LD_LIBRARY_PATH")
    assert "/opt/matlab/lib/libstdc++.so.6, which ends at 3.4.20" in result.value


def test_no_libstdcxx_at_all_is_a_failure_only_for_what_needs_it(ask, server, r1):
    server["probes"]["libraries"]["facts"]["libstdcxx"] = {"error": "cannot open"}
    del server["elf"]["/usr/lib/x86_64-linux-gnu/libstdc++.so.6"]
    assert ask(server, r1, "lib.glibcxx").fix == "sudo apt-get install -y libstdc++6"
    server["probes"]["libraries"]["facts"]["libraries"] = {}
    assert ask(server, r1, "lib.glibcxx").status == "ok"


@pytest.mark.parametrize(
    ("prefix", "files", "name"),
    [
        ("/opt/conda", ["/opt/conda/condabin/conda"], "-n base"),
        ("/home/u/my env", [], "-p '/home/u/my env'"),
    ],
)
def test_conda_environments_are_named_as_conda_names_them(ask, server, r1, prefix, files, name):
    library = f"{prefix}/lib/libstdc++.so.6"
    server["files"] |= dict.fromkeys([f"{prefix}/conda-meta/history", *files], "")
    server["elf"][library] = {"defines": ["GLIBCXX_3.4.19"]}
    server["programs"]["conda"] = "/opt/conda/bin/conda"
    server["probes"]["libraries"]["facts"]["libstdcxx"] = {"path": library}
    fix = f"conda install -y {name} -c conda-forge libstdcxx-ng"
    assert ask(server, r1, "lib.glibcxx").fix == fix
