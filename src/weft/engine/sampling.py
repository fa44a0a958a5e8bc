"""From each rank's part of the logits to one token id a sequence, on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.request import Request
from weft.vocabulary.conventions import Conventions


class Sampler:
    """Chooses tokens on the last stage and tells the other ranks.

    Shapes: N sequences, v vocabulary size, t tensor-parallel degree.
    """

    def __init__(self, groups: ProcessGroups, conventions: Conventions, vocab_size: int) -> None:
        self._groups, self._conventions, self._vocab_size = groups, conventions, vocab_size
        self._first_id = groups.tp.rank * conventions.logits_shard(vocab_size, groups.tp.size)

    def choose(self, logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor | None:
        """Logits [N, ceil(v/t)] of this rank -> ids [N]; None where another rank chooses."""
        greedy = all(request.sampling.is_greedy for request in requests)
        if self._conventions.logits == "candidates" and greedy:
            return self._best_candidate(logits)
        whole = self._collect(logits)
        if whole is None:
            return None
        whole = whole.view(len(requests), -1)[:, : self._vocab_size]
        return whole.argmax(dim=-1) if greedy else sample(whole, requests)

    def share(self, ids: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Give every rank of the pipeline the ids [N] that the last stage chose."""
        how, pp = self._conventions.sampled_ids, self._groups.pp
        if how == "host":
            return self._share_on_host(ids, like)
        if pp.size == 1:
            assert ids is not None
            return ids
        ids = torch.empty_like(like) if ids is None else ids
        if how == "broadcast":
            return pp.broadcast(ids, pp.size - 1, "sampled ids")
        ids = pp.broadcast(ids[:, None].contiguous(), pp.size - 1, "sampled ids")[:, 0]
        counts = ids.new_zeros((2, len(ids)), dtype=torch.int32)
        pp.broadcast(counts, pp.size - 1, "sampled ids")
        return ids

    def _share_on_host(self, ids: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        groups = self._groups
        if groups.device.type == "meta" or (groups.pp.size == 1 and self._every_rank_chooses):
            return like if ids is None else ids
        src = groups.layout.rank_of(stage=groups.layout.pp - 1, replica=groups.replica)
        values = groups.host_broadcast(
            None if ids is None else ids.tolist(), src, scope=f"replica{groups.replica}"
        )
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    @property
    def _every_rank_chooses(self) -> bool:
        return self._conventions.logits != "gather" or self._groups.tp.size == 1

    def _collect(self, logits: torch.Tensor) -> torch.Tensor | None:
        tp = self._groups.tp
        if self._conventions.logits == "gather":
            row = logits.squeeze(0) if len(logits) == 1 else logits
            return tp.gather(row, 0, "logits")
        stacked = tp.all_gather(logits, 0, "logits").view(tp.size, *logits.shape)
        return stacked.movedim(0, 1).flatten(1)

    def _best_candidate(self, logits: torch.Tensor) -> torch.Tensor:
        """Greedy without moving the logits: each rank offers its best (value, id) pair."""
        tp = self._groups.tp
        if tp.size == 1:
            return logits[:, : self._vocab_size].argmax(dim=-1)
        values, ids = logits.max(dim=-1)
        pairs = torch.stack((values.float(), (ids + self._first_id).float()), dim=1)
        offers = tp.all_gather(pairs, 0, "logits").view(tp.size, -1, 2)
        winner = offers[..., 0].argmax(dim=0, keepdim=True)
        return offers[..., 1].gather(0, winner)[0].long()


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """One id a row of [N, v], by each request's own parameters and random stream."""
    return torch.stack(
        [_sample_row(row, request) for row, request in zip(logits, requests, strict=True)]
    )


def _sample_row(logits: torch.Tensor, request: Request) -> torch.Tensor:
    sampling = request.sampling
    if sampling.is_greedy:
        return logits.argmax()
    logits = logits.float() / sampling.temperature
    logits = _keep_top_p(_keep_top_k(logits, sampling.top_k), sampling.top_p)
    noise = torch.empty(logits.shape, dtype=torch.float64).exponential_(
        generator=_generator(request)
    )
    probabilities = torch.softmax(logits, dim=-1)
    return (probabilities / noise.to(logits)).argmax()


def _generator(request: Request) -> torch.Generator:
    """A random stream for one token: the same under every layout and in every batch."""
    sampling = request.sampling
    name = f"{sampling.seed}" if sampling.seed is not None else f"request {request.number}"
    digest = hashlib.blake2b(f"{name}/{len(request.output)}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    if not 0 < top_k < len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))


def _keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probabilities reach ``top_p``."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(0, order, ordered)
