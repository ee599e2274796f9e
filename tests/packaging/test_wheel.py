"""What is in the wheel, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_top_level_is_exactly_the_three_packages(wheel_names):
    top = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert top == {"ktops", "ktops_engine", "ktops_doctor"}


@pytest.mark.parametrize(
    "name",
    [
        "ktops/hub/catalogue.toml",
        "ktops/messages/zh/engine.toml",
        "ktops/py.typed",
        "ktops/schemas/error.json",
        "ktops/schemas/env.json",
        "ktops_engine/_csrc/CMakeLists.txt",
        "ktops_engine/_csrc/include/ktops.h",
        "ktops_engine/demo/ktops-demo-Q4_K_M-00001-of-00002.gguf",
        "ktops_engine/demo/ktops-demo-Q4_K_M-00002-of-00002.gguf",
        "ktops_engine/demo/tokenizer.json",
    ],
)
def test_what_runs_without_a_checkout_ships(wheel_names, name):
    assert name in wheel_names


def test_nothing_that_was_built_or_cached_ships(wheel_names):
    assert not [name for name in wheel_names if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.parametrize(
    "module",
    ["ktops.cli", "ktops_engine", "ktops_engine.plan", "ktops_engine.gguf", "ktops_doctor",
     "ktops_engine.native.build", "ktops_engine.native.load"],
)  # fmt: skip
def test_importing_it_loads_no_heavy_library(module):
    heavy = "{'torch', 'triton', 'transformers', 'fastapi', 'huggingface_hub'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_project_speaks_of_itself_alone():
    """Nothing reads a folder beside the checkout, and no path of a machine is written down."""
    forbidden = ("../shared", "/" + "work/", "/" + "root/")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    guilty = []
    for name in filter(None, files):
        data = (ROOT / name).read_bytes()
        if b"\0" in data[:1024] or name == "tests/packaging/test_wheel.py":
            continue
        guilty += [(name, word) for word in forbidden if word.encode() in data]
    assert guilty == []
