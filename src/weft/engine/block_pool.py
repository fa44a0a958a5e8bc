"""BlockPool: the key-value cache in blocks of equal size, handed out, shared and taken back.

A full block can be remembered under a key of the tokens that it holds and of all before them
(``weft.engine.prefix``). As long as nobody needs its place it can be found again by that key,
by requests that begin with the same tokens; the least recently used one makes room first.
Every operation costs what it hands out or takes back, however many blocks there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class BlockPool:
    """``num_blocks`` blocks of ``block_size`` positions; block 0 is kept for padding rows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.reset()

    def reset(self) -> None:
        """Take every block back and forget what they hold."""
        self._blank = deque(range(1, self.num_blocks))
        self._idle: dict[int, None] = {}
        self._users = [0] * self.num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses, remembered ones included."""
        return len(self._blank) + len(self._idle)

    @property
    def capacity_tokens(self) -> int:
        """Positions that one request alone could use."""
        return (self.num_blocks - 1) * self.block_size

    def blocks_for(self, num_positions: int) -> int:
        return -(-num_positions // self.block_size)

    def grow(self, blocks: list[int], num_positions: int) -> bool:
        """Extend ``blocks`` to hold ``num_positions``; False (and no change) if too few are free."""
        missing = self.blocks_for(num_positions) - len(blocks)
        if missing > self.num_free:
            return False
        blocks.extend(self._new_block() for _ in range(missing))
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each of ``blocks``: of a prefix, the end is given away first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._blank.append(block)

    def remember(self, block: int, key: bytes) -> None:
        """``block`` is full of what ``key`` stands for, on every rank."""
        if key not in self._block_of:
            self._block_of[key], self._key_of[block] = block, key

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of ``keys`` that is remembered; not yet taken."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def begin(self, blocks: list[int], found: Sequence[int], num_positions: int) -> bool:
        """Fill the empty ``blocks`` with what was ``found`` and new ones, as ``grow``."""
        num_idle = sum(not self._users[block] for block in found)
        missing = self.blocks_for(num_positions) - len(found)
        if missing > self.num_free - num_idle:
            return False
        for block in found:
            self._idle.pop(block, None)
            self._users[block] += 1
        blocks.extend(found)
        return self.grow(blocks, num_positions)

    def _new_block(self) -> int:
        if self._blank:
            block = self._blank.popleft()
        else:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._block_of[self._key_of.pop(block)]
        self._users[block] = 1
        return block
