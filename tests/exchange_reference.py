"""Rows, routes and made-up experts, and what an exchange must make of them: plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.vocabulary.routes import Routes


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """R rows a rank of a hidden size, k choices a row of the experts of all ranks."""

    ranks: int
    rows: int
    hidden: int
    chosen: int
    share: int
    dtype: torch.dtype
    device: str = "cpu"

    def inputs(self, seed: int, rank: int) -> tuple[torch.Tensor, Routes]:
        """(rows [R, h], their routes) of one rank, the same wherever it is asked.

        The seed says how rows choose: among all experts, those of one rank (the others get
        nothing), those of two neighbouring ranks; now and then a place is nobody's.
        """
        generator = torch.Generator().manual_seed(seed * 64 + rank)
        x = torch.randn(self.rows, self.hidden, generator=generator)
        weights = torch.rand(self.rows, self.chosen, generator=generator)
        count = self.ranks * self.share
        crowd = {0: count, 1: self.share, 2: min(count, 2 * self.share)}[seed % 3]
        first = seed // 3 % self.ranks * self.share
        scores = torch.rand(self.rows, crowd, generator=generator)
        ids = scores.argsort(dim=1)[:, : self.chosen].add(first).remainder(count)
        ids = torch.nn.functional.pad(ids, (0, self.chosen - ids.shape[1]), value=count)
        if seed % 4 == 3:
            ids[torch.rand(ids.shape, generator=generator) < 0.3] = count + seed % 2
        routes = Routes(ids=ids.to(self.device), weights=weights.to(self.device), nobody=count)
        return x.to(self.device, self.dtype), routes

    def partial(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, first: int = 0
    ) -> torch.Tensor:
        """What the experts from ``first`` on make of rows [N, h]; ids count from ``first``."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for place in range(self.chosen):
            at, weight = ids[:, place, None], weights[:, place, None]
            part = x.float() * (1 + (at + first) / 8) * weight
            total += torch.where((at >= 0) & (at < self.share), part, 0.0)
        return total.to(self.dtype)

    def expected(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """The sums of one rank's rows: in rank order, in fp32, rounded once."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for owner in range(self.ranks):
            first = owner * self.share
            total += self.partial(x, routes.ids - first, routes.weights, first).float()
        return total.to(self.dtype)

    def misplaced(self, seed: int, rank: int, rows: torch.Tensor, routes: Routes) -> int:
        """Rows and choices of a dispatch's result that are not those of their ranks."""
        wrong = 0
        for source in range(self.ranks):
            x, given = self.inputs(seed, source)
            place = slice(source * self.rows, (source + 1) * self.rows)
            local = given.ids - rank * self.share
            here = (local >= 0) & (local < self.share)
            wrong += int((routes.ids[place] != torch.where(here, local, self.share)).sum())
            wrong += int((routes.weights[place] != given.weights).sum())
            wrong += int((rows[place] != x)[here.any(dim=1)].sum())
        return wrong
