"""Log-probabilities of sampled tokens and of prompts, for the requests that ask for them.

A step without such a request never comes here: nothing is computed, moved or sent for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import torch

from weft.comm.groups import ProcessGroups
from weft.engine.batch import to_device
from weft.engine.request import TokenLogprobs
from weft.engine.scheduler import Chunk
from weft.engine.step import PromptRows
from weft.vocabulary.conventions import Conventions

LEAST: Final = -9999.0
"""What stands for a logarithm that is no finite number."""
_ROWS_AT_ONCE: Final = 256
"""Rows of a prompt whose logits are held in fp32 at once."""


class LogprobReader:
    """Reads them from each rank's part of the logits.

    Shapes: N sampled sequences and M rows of prompts, R of both with log-probabilities, K the
    most that one of them wants, v vocabulary size, t tensor-parallel degree.
    """

    def __init__(self, groups: ProcessGroups, conventions: Conventions, vocab_size: int) -> None:
        self._tp, self._pp, self._device = groups.tp, groups.pp, groups.device
        self._vocab_size = vocab_size
        self._first_id = groups.tp.rank * conventions.logits_shard(vocab_size, groups.tp.size)

    def read(
        self,
        logits: torch.Tensor,
        ids: torch.Tensor,
        chunks: Sequence[Chunk],
        prompt: PromptRows,
    ) -> torch.Tensor | None:
        """Logits [N + M, ceil(v/t)] and sampled ids [N] of the last stage -> [R, 1 + 2K] fp32.

        A row: the token's log-probability, K best ones, K ids. None where no request wants any.
        Each rank of the stage offers its sum, its part of the token and its K best.
        """
        rows, num_top = self._wanted(chunks, prompt)
        if not rows:
            return None
        index, targets = to_device(self._device, np.array(rows), np.array(prompt.targets))
        every = torch.cat((ids, targets))
        return torch.cat(
            [
                self._joined(self._offer(logits[part].float(), every[part], num_top), num_top)
                for part in index.split(_ROWS_AT_ONCE)
            ]
        )

    def share(
        self, found: torch.Tensor | None, chunks: Sequence[Chunk], prompt: PromptRows
    ) -> torch.Tensor | None:
        """The last stage's ``found`` on every rank."""
        rows, num_top = self._wanted(chunks, prompt)
        if not rows:
            return None
        if found is None:
            found = torch.full((len(rows), 1 + 2 * num_top), math.nan, device=self._device)
        return self._pp.broadcast(found, self._pp.size - 1, "logprobs")

    def _wanted(self, chunks: Sequence[Chunk], prompt: PromptRows) -> tuple[list[int], int]:
        """Rows of the logits with log-probabilities and the most that one of them wants."""
        wanted = [_wanted(chunk) for chunk in chunks]
        rows = [row for row, count in enumerate(wanted) if count is not None]
        rows += range(len(chunks), len(chunks) + len(prompt.targets))
        most = max((count or 0 for count in wanted), default=0)
        return rows, min(max(most, prompt.num_top), self._vocab_size)

    def _offer(self, logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> torch.Tensor:
        """This rank's (log of its sum, the token's logit or -inf, K values, K ids) [R, 2 + 2K]."""
        num_real = max(0, min(logits.shape[1], self._vocab_size - self._first_id))
        logits[:, num_real:] = -math.inf
        mine = ids - self._first_id
        is_here = (mine >= 0) & (mine < num_real)
        own = logits.gather(1, mine.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        own = own.masked_fill(~is_here, -math.inf)
        num_offered = min(num_top, logits.shape[1])
        values, places = logits.topk(num_offered, dim=1)
        missing = (0, num_top - num_offered)
        return torch.cat(
            (
                torch.stack((logits.logsumexp(1), own), dim=1),
                torch.nn.functional.pad(values, missing, value=-math.inf),
                torch.nn.functional.pad((places + self._first_id).float(), missing),
            ),
            dim=1,
        )

    def _joined(self, offer: torch.Tensor, num_top: int) -> torch.Tensor:
        """Every rank's offer as one [R, 1 + 2K]; ids are exact in fp32 up to 2**24."""
        every = self._tp.all_gather(offer, 0, "logprobs").view(self._tp.size, *offer.shape)
        total = every[..., 0].logsumexp(0)
        own = every[..., 1].amax(0) - total
        values, ids = every[..., 2:].unflatten(2, (2, num_top)).permute(2, 1, 0, 3).flatten(2)
        best, places = values.topk(num_top, dim=1)
        return torch.cat((own[:, None], best - total[:, None], ids.gather(1, places)), dim=1)


def book_logprobs(
    chunks: Sequence[Chunk],
    kept: Collection[Chunk],
    prompt: PromptRows,
    found: Sequence[Sequence[float]],
) -> None:
    """Give each request that wants them its rows of ``read``, those of the ``kept`` tokens.

    A prompt that is computed again after preemption is booked once.
    """
    if not found:
        return
    rows, given = iter(found), set(kept)
    for chunk in chunks:
        if _wanted(chunk) is not None:
            row = next(rows)
            if chunk in given:
                chunk.request.logprobs.append(_token_logprobs(row, _wanted(chunk)))
    for request, first, count in prompt.spans:
        for place, row in zip(range(first, first + count), rows, strict=False):
            if len(request.prompt_logprobs) == place - 1:
                wanted = request.sampling.prompt_logprobs
                request.prompt_logprobs.append(_token_logprobs(row, wanted))


def _token_logprobs(row: Sequence[float], num_wanted: int | None) -> TokenLogprobs:
    num_top = (len(row) - 1) // 2
    values, ids = row[1 : 1 + num_top], row[1 + num_top :]
    best = list(zip(map(int, ids), map(_finite, values), strict=True))
    return TokenLogprobs(logprob=_finite(row[0]), top=tuple(best[:num_wanted]))


def _wanted(chunk: Chunk) -> int | None:
    return chunk.request.sampling.logprobs


def _finite(value: float) -> float:
    return max(LEAST, value)
