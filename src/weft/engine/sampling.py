"""From each rank's part of the logits to one token id a sequence, on every rank."""

from __future__ import annotations

import numpy as np
import torch

from weft.comm.communicator import Communicator
from weft.comm.groups import ProcessGroups
from weft.engine.batch import to_device
from weft.engine.draw import Draws, best_of_rows
from weft.engine.filters import processed
from weft.engine.request import NO_TOKEN
from weft.engine.sampling_table import SamplingTable
from weft.engine.step import Step
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.speculation import Speculation


class Sampler:
    """Chooses tokens on the last stage and tells the other ranks.

    Shapes: N sequences, v vocabulary size, t tensor-parallel degree. holders: of the parts of the
    vocabulary; more than the group's where the head sees the rows of ``num_joined`` replicas.
    """

    def __init__(
        self,
        groups: ProcessGroups,
        conventions: Conventions,
        vocab_size: int,
        num_rows: int,
        speculation: Speculation | None = None,
        *,
        holders: Communicator,
    ) -> None:
        self._speculation, self._holders = speculation, holders
        self.num_joined = holders.size // groups.tp.size
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
        if not step.is_plain:
            (rows,) = to_device(whole.device, step.sampled[0])
            whole = processed(whole, step.sampling, rows, self.table)
        return best_of_rows(whole, self._vocab_size, 0, draws)[0]

    def greedy(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The likeliest ids [N] of logits [N, ceil(v/t)]; None where another rank chooses."""
        if self._conventions.logits == "candidates":
            return self.pick(logits, None)
        whole = self._collect(logits)
        return None if whole is None else best_of_rows(whole, self._vocab_size, 0, None)[0]

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

    def share(self, ids: torch.Tensor | None, step: Step) -> torch.Tensor:
        """Give every rank of the pipeline the ids [N] that the last stage chose."""
        how, pp = self._conventions.sampled_ids, self._groups.pp
        like = torch.full((len(step.sampling),), NO_TOKEN, device=self._groups.device)
        if how == "host":
            return self._share_on_host(ids, like)
        ids = like if ids is None else ids
        if pp.size == 1:
            return ids
        if how == "broadcast":
            ids = pp.broadcast(ids, pp.size - 1, "sampled ids")
        else:
            ids = self._share_by_request(ids, step)
        self._share_drafts(ids, step.sampled_places[2])
        return ids

    def _share_by_request(self, ids: torch.Tensor, step: Step) -> torch.Tensor:
        """As vLLM does: a row of ids for each request, and how many of them were right."""
        pp, width = self._groups.pp, 1 if self._speculation is None else self._speculation.rows
        requests, which, count = step.sampled_places
        places = to_device(ids.device, requests, which)
        rows = ids.new_full((count, width), NO_TOKEN).index_put(places, ids)
        rows = pp.broadcast(rows, pp.size - 1, "sampled ids")
        pp.broadcast(ids.new_zeros((2, count), dtype=torch.int32), pp.size - 1, "sampled ids")
        return rows[places]

    def _share_drafts(self, ids: torch.Tensor, count: int) -> None:
        """Where the last stage alone has the drafts, or the engine sends them anyway."""
        drafts, pp = self._speculation, self._groups.pp
        if drafts is not None and self._conventions.tells_drafts(drafts.has_layer):
            pp.broadcast(ids.new_zeros((count, drafts.num_drafts)), pp.size - 1, "drafts")

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
        """Logits [N, v] where the choice is made; None elsewhere."""
        tp = self._groups.tp
        if self._conventions.logits == "gather":
            row = logits.squeeze(0) if len(logits) == 1 else logits
            whole = tp.gather(row, 0, "logits")
            return None if whole is None else whole.view(len(logits), -1)[:, : self._vocab_size]
        of = self._holders
        stacked = of.all_gather(logits, 0, "logits").view(of.size, *logits.shape)
        whole = stacked.movedim(0, 1).flatten(1)[:, : self._vocab_size]
        return whole.chunk(self.num_joined)[of.rank // tp.size]
