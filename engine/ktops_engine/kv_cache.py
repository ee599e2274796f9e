"""The paged latent cache: blocks of tokens handed to requests, and the memory behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class BlockPool:
    """Hands out cache blocks by number. Knows nothing of tensors.

    Blocks come lowest number first, so that a request that runs alone gets consecutive blocks and
    attention reads its cache in place.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = set(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens occupy."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take `num_blocks` free blocks; the caller has asked `can_allocate` first."""
        if not self.can_allocate(num_blocks):
            raise ValueError(f"{num_blocks} blocks asked for, {len(self._free)} free")
        blocks = sorted(self._free)[:num_blocks]
        self._free.difference_update(blocks)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back; each must be in use."""
        for block in blocks:
            if block in self._free or not 0 <= block < self.num_blocks:
                raise ValueError(f"block {block} is not in use")
            self._free.add(block)


class LatentCache:
    """Per layer and token, the normalised latent and the rotated shared key.

    layers: [num_layers][num_blocks * block_size, kv_lora_rank + qk_rope_head_dim] float32, cpu; or
    bfloat16, cuda, but for the last `tail_layers`, which the CPU computes
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        tail_layers: int = 0,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        shape = (num_blocks * block_size, width)
        kinds = [(dtype, device)] * (num_layers - tail_layers)
        kinds += [(torch.float32, torch.device("cpu"))] * tail_layers
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for dtype, device in kinds]

    def slots(self, block_table: Sequence[int], num_tokens: int) -> slice | torch.Tensor:
        """Rows that hold a request's first `num_tokens` tokens.

        A slice where its blocks are consecutive, so that reading copies nothing; else indices.
        """
        size = self.block_size
        blocks = block_table[: -(-num_tokens // size)]
        first = blocks[0]
        if all(block == first + i for i, block in enumerate(blocks)):
            return slice(first * size, first * size + num_tokens)
        rows = torch.tensor(blocks)[:, None] * size + torch.arange(size)
        return rows.flatten()[:num_tokens]
