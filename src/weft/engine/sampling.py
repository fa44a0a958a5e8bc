"""From each rank's part of the logits to one token id a sequence, on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.request import NO_TOKEN
from weft.engine.scheduler import Chunk
from weft.layers import fused
from weft.vocabulary.conventions import Conventions


class Sampler:
    """Chooses tokens on the last stage and tells the other ranks.

    Shapes: N sequences, v vocabulary size, t tensor-parallel degree.
    """

    def __init__(self, groups: ProcessGroups, conventions: Conventions, vocab_size: int) -> None:
        self._groups, self._conventions, self._vocab_size = groups, conventions, vocab_size
        self._first_id = groups.tp.rank * conventions.logits_shard(vocab_size, groups.tp.size)

    @property
    def greedy_stays_on_device(self) -> bool:
        """Whether :meth:`best` chooses on every rank of the last stage, with nothing on the host."""
        return self._conventions.logits == "candidates" or self._groups.tp.size == 1

    def choose(self, logits: torch.Tensor, chunks: Sequence[Chunk]) -> torch.Tensor | None:
        """Logits [N, ceil(v/t)] of this rank -> ids [N]; None where another rank chooses."""
        greedy = all(chunk.request.sampling.is_greedy for chunk in chunks)
        if self._conventions.logits == "candidates" and greedy:
            return self.best(logits)
        whole = self._collect(logits)
        if whole is None:
            return None
        whole = whole.view(len(chunks), -1)[:, : self._vocab_size]
        ids = whole.argmax(dim=-1) if greedy else sample(whole, chunks)
        return _or_no_token(ids, whole.amax(dim=-1))

    def share(self, ids: torch.Tensor | None, count: int) -> torch.Tensor:
        """Give every rank of the pipeline the ``count`` ids that the last stage chose."""
        how, pp = self._conventions.sampled_ids, self._groups.pp
        like = torch.full((count,), NO_TOKEN, device=self._groups.device)
        if how == "host":
            return self._share_on_host(ids, like)
        ids = like if ids is None else ids
        if pp.size == 1:
            return ids
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
        ids = like if ids is None else ids
        values = groups.host_broadcast(ids.tolist(), src, scope=f"replica{groups.replica}")
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

    def best(self, logits: torch.Tensor) -> torch.Tensor:
        """Greedy without moving the logits: each rank offers its best (value, id) pair."""
        tp = self._groups.tp
        ids, pairs = self._own_best(logits)
        if tp.size == 1:
            return ids
        offers = tp.all_gather(pairs, 0, "logits").view(tp.size, -1, 2)
        winner = offers[..., 0].argmax(dim=0, keepdim=True)
        return offers[..., 1].gather(0, winner)[0].long()

    def _own_best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's best id [N] and (value, id) [N, 2] fp32; columns past the end are -inf."""
        if fused.takes(logits):
            from weft.layers.fused.argmax import best_of_rows

            num_real = min(logits.shape[1], self._vocab_size - self._first_id)
            return best_of_rows(logits, num_real, self._first_id)
        values, ids = logits.max(dim=-1)
        ids = _or_no_token(ids + self._first_id, values)
        return ids, torch.stack((values.float(), ids.float()), dim=1)


def _or_no_token(ids: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """The ids [N], but NO_TOKEN for rows whose largest logit [N] is no finite number."""
    return ids.masked_fill(~largest.isfinite(), NO_TOKEN)


def sample(logits: torch.Tensor, chunks: Sequence[Chunk]) -> torch.Tensor:
    """One id a row of [N, v], by each request's own parameters and random stream."""
    return torch.stack([_sample_row(row, chunk) for row, chunk in zip(logits, chunks, strict=True)])


def _sample_row(logits: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    sampling = chunk.request.sampling
    if sampling.is_greedy:
        return logits.argmax()
    logits = logits.float() / sampling.temperature
    logits = _keep_top_p(_keep_top_k(logits, sampling.top_k), sampling.top_p)
    generator = _generator(chunk, logits.device)
    noise = torch.empty(logits.shape, dtype=torch.float64, device=generator.device)
    noise.exponential_(generator=generator)
    probabilities = torch.softmax(logits, dim=-1)
    return (probabilities / noise.to(logits)).argmax()


def _generator(chunk: Chunk, device: torch.device) -> torch.Generator:
    """A random stream for one token: the same under every layout and in every batch."""
    request = chunk.request
    seed = request.sampling.seed
    name = f"{seed}" if seed is not None else f"request {request.number}"
    digest = hashlib.blake2b(f"{name}/{chunk.token_index}".encode(), digest_size=7).digest()
    generator = torch.Generator(device if device.type == "cuda" else "cpu")
    return generator.manual_seed(int.from_bytes(digest, "big"))


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
