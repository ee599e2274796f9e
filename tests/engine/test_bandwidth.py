"""With how much memory the RAM's speed is measured."""

from __future__ import annotations

import pytest
from planned_models import GIB, machine

from ktops_engine import bandwidth
from ktops_engine.bandwidth import LEAST_PER_NODE, largest_cache_bytes, working_set_bytes


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Sets what the kernel says of the caches of CPU 0."""
    monkeypatch.setattr(bandwidth, "CACHES", tmp_path)

    def say(*sizes: str) -> None:
        for index, size in enumerate(sizes):
            folder = tmp_path / f"cpu0/cache/index{index}"
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{size}\n")

    return say


def test_a_cache_that_keeps_what_is_read_again_is_a_small_part_of_what_is_read(caches):
    caches("48K", "2048K", "307200K")
    assert largest_cache_bytes(0) == 300 << 20
    assert working_set_bytes(machine(ram=250 * GIB)) == 16 * (300 << 20)


def test_a_machine_that_does_not_tell_its_caches_is_measured_with_enough_for_any_socket(caches):
    caches("", "unknown")
    assert largest_cache_bytes(0) == largest_cache_bytes(7) == 0
    assert working_set_bytes(machine(ram=250 * GIB)) == LEAST_PER_NODE


def test_no_more_than_an_eighth_of_the_free_ram_is_taken_and_too_little_says_nothing(caches):
    caches("307200K")
    assert working_set_bytes(machine(ram=8 * GIB)) == GIB
    assert working_set_bytes(machine(ram=1 * GIB)) is None
