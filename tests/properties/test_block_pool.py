"""The block pool neither loses nor doubles a block."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ktops_engine.kv_cache import BlockPool, LatentCache

NUM_BLOCKS = 12


class BlockPoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 64)
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, NUM_BLOCKS))
    def allocate_what_fits(self, count: int) -> None:
        if self.pool.can_allocate(count):
            self.held.append(self.pool.allocate(count))
        else:
            with pytest.raises(ValueError, match="free"):
                self.pool.allocate(count)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_one(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def every_block_has_one_owner(self) -> None:
        owned = [block for blocks in self.held for block in blocks]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.pool.num_free == NUM_BLOCKS


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=50, stateful_step_count=30)


def test_releasing_a_block_twice_is_refused():
    pool = BlockPool(4, 64)
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(blocks)


def test_consecutive_blocks_are_read_in_place_and_scattered_ones_by_index():
    cache = LatentCache(num_layers=1, num_blocks=8, block_size=4, width=2)
    assert cache.slots([2, 3, 4], 10) == slice(8, 18)
    assert cache.slots([5, 1], 6).tolist() == [20, 21, 22, 23, 4, 5]
    assert cache.slots([5, 1], 3) == slice(20, 23)
