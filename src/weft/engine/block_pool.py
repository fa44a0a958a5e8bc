"""BlockPool: the key-value cache in blocks of equal size, handed out and taken back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class BlockPool:
    """``num_blocks`` blocks of ``block_size`` positions; block 0 is kept for padding rows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.reset()

    def reset(self) -> None:
        """Take every block back."""
        self._free = deque(range(1, self.num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def capacity_tokens(self) -> int:
        """Positions that one request alone could use."""
        return (self.num_blocks - 1) * self.block_size

    def blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self.block_size)

    def grow(self, blocks: list[int], num_positions: int) -> bool:
        """Extend ``blocks`` to hold ``num_positions``; False (and no change) if too few are free."""
        missing = self.blocks_for(num_positions) - len(blocks)
        if missing > len(self._free):
            return False
        blocks.extend(self._free.popleft() for _ in range(missing))
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Take all ``blocks`` back."""
        self._free.extend(blocks)
