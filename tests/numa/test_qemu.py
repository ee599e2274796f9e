"""Pages on a virtual machine with two full NUMA nodes, one without CPUs and one without memory.

Takes a minute and a Linux kernel, so it runs where KTOPS_QEMU_KERNEL names one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_qemu.py")
KERNEL = os.environ.get("KTOPS_QEMU_KERNEL", "")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not KERNEL, reason="KTOPS_QEMU_KERNEL names no kernel image")
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU")
def test_every_page_is_on_the_node_of_its_rows():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kernel", KERNEL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all pages are where they belong") == 5
    assert "one node: nothing to place" in done.stdout
