"""From each rank's part of the logits to one token id a sequence, on every rank."""

from __future__ import annotations

import numpy as np
import torch

from weft.comm.groups import ProcessGroups
from weft.engine.batch import to_device
from weft.engine.draw import Draws, best_of_rows
from weft.engine.filters import processed
from weft.engine.request import NO_TOKEN
from weft.engine.sampling_table import SamplingTable
from weft.engine.step import Step
from weft.vocabulary.conventions import Conventions


class Sampler:
    """Chooses tokens on the last stage and tells the other ranks.

    Shapes: N sequences, v vocabulary size, t tensor-parallel degree.
    """

    def __init__(
        self, groups: ProcessGroups, conventions: Conventions, vocab_size: int, num_rows: int
    ) -> None:
        self._groups, self._conventions, self._vocab_size = groups, conventions, vocab_size
        self._share = conventions.logits_shard(vocab_size, groups.tp.size)
        self.table = SamplingTable(num_rows, vocab_size, groups.device)

    @property
    def picks_alone(self) -> bool:
        """Whether :meth:`pick` chooses on every rank of the last stage, with nothing on the host."""
        return self._conventions.logits == "candidates" or self._groups.tp.size == 1

    def pick(self, logits: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        """Logits [N, ceil(v/t)] -> ids [N] without moving the logits, by temperature alone.

        Each rank offers its best (score, id) pair. Without ``draws`` all rows are greedy.
        """
        tp = self._groups.tp
        first_id = tp.rank * self._share
        num_real = max(1, min(logits.shape[1], self._vocab_size - first_id))
        ids, pairs = best_of_rows(logits, num_real, first_id, draws)
        if tp.size == 1:
            return ids
        offers = tp.all_gather(pairs, 0, "logits").view(tp.size, -1, 2)
        winner = offers[..., 0].argmax(dim=0, keepdim=True)
        return offers[..., 1].gather(0, winner)[0].long()

    def choose(self, logits: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Logits [N, ceil(v/t)] of this rank -> ids [N]; None where another rank chooses."""
        draws = None if step.is_greedy else self._draws(step)
        if self._conventions.logits == "candidates" and step.is_plain:
            return self.pick(logits, draws)
        whole = self._collect(logits)
        if whole is None:
            return None
        whole = whole.view(len(step.sampling), -1)[:, : self._vocab_size]
        if not step.is_plain:
            (rows,) = to_device(whole.device, step.sampled[0])
            whole = processed(whole, step.sampling, rows, self.table)
        return best_of_rows(whole, self._vocab_size, 0, draws)[0]

    def note(self, step: Step, ids: torch.Tensor) -> None:
        """The chosen ids [N] count against the requests of the step that are penalized."""
        places = [
            place for place, chunk in enumerate(step.sampling) if chunk.request.sampling.penalizes
        ]
        if places:
            rows, where = to_device(ids.device, step.sampled[0][places], np.array(places))
            self.table.note(rows, ids[where])

    def _draws(self, step: Step) -> Draws:
        rows, lengths = to_device(self._groups.device, *step.sampled)
        return Draws(rows=rows.int(), lengths=lengths.int(), table=self.table)

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
