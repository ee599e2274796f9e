"""A disk that takes no more in the middle of a file: said so, and gone on from there later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stalled_download import partials, stalled_download

WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
THIRD = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00003-of-00009.gguf"
HF = ("--source", "hf")
DOWNLOAD = ["-m", "ktops", "download", "r1-q4km", "--json", *HF]


def test_a_file_that_may_not_grow_keeps_what_it_has(ktops, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    limited = f"ulimit -f 10000; exec {sys.executable} {' '.join(DOWNLOAD)}"  # of 512 bytes
    ran = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 4
    assert '"code": "disk-too-small"' in ran.stdout.splitlines()[-1]
    assert [path.stat().st_size for path in partials(models_dir / "r1-q4km")] == [5_120_000]
    hub.data.clear()
    assert ktops("download", "r1-q4km", *HF).status == 0
    assert [data.start for data in hub.data if data.path == THIRD] == [5_120_000]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace of its own")
def test_a_disk_that_fills_half_way_is_said_so(hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "stall", 15_000_000)
    models_dir.mkdir()
    mount = f"mount -t tmpfs -o size=150m none {models_dir}"
    script = f"{mount} && exec {sys.executable} {' '.join(DOWNLOAD)}"
    command = ["unshare", "-rm", "sh", "-c", script]
    with stalled_download(models_dir / "r1-q4km", 10 << 20, command=command) as process:
        inside = Path(f"/proc/{process.pid}/root{models_dir}")
        with (inside / "filler").open("wb", buffering=0) as filler:
            free = os.statvfs(inside).f_bavail * os.statvfs(inside).f_bsize
            os.posix_fallocate(filler.fileno(), 0, free - (1 << 20))
        hub.released.set()
        assert process.stdout is not None
        last = process.stdout.read().splitlines()[-1]
        assert process.wait(30) == 4
    assert b'"code": "disk-full"' in last
    assert b"df -h" in last
