"""What a request asks of its logits before a token is chosen: penalties, bias, fewer candidates.

Batched over the rows of a step, in the order of vLLM (bias, penalties) and transformers
(temperature, top-k, top-p, min-p). Shapes: N rows, v vocabulary size; all fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from weft.engine.sampling_table import SamplingTable
from weft.engine.scheduler import Chunk


def processed(
    logits: torch.Tensor, chunks: Sequence[Chunk], rows: torch.Tensor, table: SamplingTable
) -> torch.Tensor:
    """Logits [N, v] of the chunks in the request rows [N] -> those that are chosen from."""
    each = [chunk.request.sampling for chunk in chunks]
    logits = logits.float().clone()
    _add_biases(logits, chunks)
    numbers = table.numbers[rows]
    if any(one.penalizes for one in each):
        logits = _penalized(logits, table.counts[rows], table.in_prompt[rows], numbers)
    if any(one.cuts for one in each):
        sorts = any(one.top_k or one.top_p < 1 for one in each)
        logits = cut(logits, numbers, table.integers[rows, 2], sorts=sorts)
    return logits


def _add_biases(logits: torch.Tensor, chunks: Sequence[Chunk]) -> None:
    """Each request's own, and no stop before its ``min_tokens``."""
    places: list[tuple[int, int]] = []
    values: list[float] = []
    for row, chunk in enumerate(chunks):
        sampling = chunk.request.sampling
        entries = [(int(token), value) for token, value in sampling.logit_bias]
        if chunk.token_index < sampling.min_tokens:
            entries += [(token, -math.inf) for token in chunk.request.stop_ids]
        for token, value in entries:
            if token < logits.shape[1]:
                places.append((row, token))
                values.append(value)
    if places:
        where = torch.tensor(places, device=logits.device).T
        added = torch.tensor(values, device=logits.device, dtype=logits.dtype)
        logits.index_put_(tuple(where), added, accumulate=True)


def _penalized(
    logits: torch.Tensor, counts: torch.Tensor, in_prompt: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    repetition, presence, frequency = numbers[:, 3:, None].unbind(1)
    factor = torch.where(in_prompt | (counts > 0), repetition, 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    return logits - frequency * counts - presence * (counts > 0)


def cut(
    logits: torch.Tensor, numbers: torch.Tensor, top_k: torch.Tensor, *, sorts: bool
) -> torch.Tensor:
    """Logits [N, v], minus infinity where a row's top_k, top_p or min_p leave the token out.

    sorts: whether a row has one of the first two.
    """
    temperature, top_p, min_p = numbers[:, :3, None].unbind(1)
    scaled = logits / torch.where(temperature > 0, temperature, 1.0)
    dropped = torch.zeros_like(scaled, dtype=torch.bool)
    if sorts:
        ordered, order = scaled.sort(dim=1, descending=True)
        last = torch.where(top_k > 0, top_k, ordered.shape[1]).clamp(max=ordered.shape[1]) - 1
        too_low = ordered < ordered.gather(1, last[:, None])
        probabilities = ordered.masked_fill(too_low, -math.inf).softmax(dim=1)
        before = probabilities.cumsum(dim=1) - probabilities
        too_low |= (before >= top_p) & (top_p < 1) & (before > 0)
        dropped.scatter_(1, order, too_low)
    dropped |= scaled < scaled.amax(dim=1, keepdim=True) + min_p.log()
    return logits.masked_fill(dropped, -math.inf)
