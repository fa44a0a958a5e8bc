"""PrefixCache: requests that begin with the same tokens share the blocks of them.

A block's key is a digest of its tokens and of the key before it, the same on every rank. Blocks
are remembered once a token was sampled after them: a rank that fails to fill one gives no token,
so what is found was computed by every rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from weft.engine.block_pool import BlockPool
from weft.engine.request import Request


class PrefixCache:
    """Finds and remembers the blocks of one pool; nothing at all unless ``enabled``.

    num_asked, num_hit: prompt tokens of admitted requests, and those that were found.
    """

    def __init__(self, pool: BlockPool, *, enabled: bool) -> None:
        self._pool, self._enabled = pool, enabled
        self.num_asked = self.num_hit = 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Nothing is found, remembered or counted while the context is open."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def find(self, request: Request) -> list[int]:
        """The blocks that hold the beginning of the request, which has none of its own yet.

        Its last token is always computed, since the next one is sampled after it.
        """
        if not self._enabled or request.sampling.prompt_logprobs is not None:
            return []
        count = (request.length - 1) // self._pool.block_size
        self._extend_keys(request, count)
        return self._pool.find(request.keys[:count])

    def count(self, request: Request) -> None:
        """Book an admission: ``num_computed`` positions were found."""
        if not request.output:
            request.num_cached = request.num_computed
        if self._enabled:
            self.num_asked += request.length
            self.num_hit += request.num_computed

    def remember(self, request: Request, num_positions: int) -> None:
        """Note the full blocks of the first ``num_positions``, which gave a token.

        A request that was preempted since has no blocks to note.
        """
        count = num_positions // self._pool.block_size
        if not self._enabled or not request.blocks or count <= request.num_remembered:
            return
        self._extend_keys(request, count)
        for place in range(request.num_remembered, count):
            self._pool.remember(request.blocks[place], request.keys[place])
        request.num_remembered = count

    def _extend_keys(self, request: Request, count: int) -> None:
        size, keys = self._pool.block_size, request.keys
        for place in range(len(keys), count):
            tokens = np.array(request.slice(place * size, (place + 1) * size), dtype=np.int64)
            before = keys[-1] if keys else b""
            keys.append(hashlib.blake2b(before + tokens.tobytes(), digest_size=16).digest())
