"""Which step, layer and rank differs from the schedule, with the time in that rank's trace.

A call of the wrong size or operation is itself the place. Of equal calls one after another
(the all-reduces of the layers) one that is missing, or one too many, shows in the times
between its neighbours: the place is where they fit those of a whole step best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from weft.importer.layout_inference import RunLayout
from weft.importer.rank_trace import RankTrace
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective

MOST_DEVIATIONS: Final = 200
_MOST_APART_US: Final = 20.0
Placed = tuple[Collective, float, float]
"""One call as a row of count 1, its start and its end on the clock of its trace."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One call that differs: ``step`` counts the rank's steps with requests from 0.

    ``layer`` is the model's layer and ``part`` the block of it, None where the call belongs
    to no layer or cannot be placed; ``time_us`` is on the clock of the rank's own trace:
    that of the call, or of the call before it where it is missing; None in traces without times.
    """

    kind: Literal["missing", "surplus", "unexplained"]
    rank: int
    stage: int
    phase: str
    op: str
    time_us: float | None
    step: int | None = None
    layer: int | None = None
    part: str | None = None
    shape: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"text": self.text()}

    def text(self) -> str:
        place = [f"rank {self.rank}"]
        if self.step is not None:
            place.append(f"step {self.step} ({self.phase})")
        if self.layer is not None:
            place.append(f"layer {self.layer}")
        if self.part is not None:
            place.append(self.part)
        size = "of unknown size" if self.shape is None else f"{list(self.shape)}"
        when = "after" if self.kind == "missing" else "at"
        clock = "" if self.time_us is None else f", {when} {self.time_us:,.3f} us"
        return f"{', '.join(place)}: {self.op} {size} {self.kind}{clock}"


class Locator:
    """Compares the calls of each step of each rank with those that the schedule has."""

    def __init__(
        self,
        run: RunLayout,
        traces: Mapping[int, RankTrace],
        calls: Mapping[int, Mapping[int, Sequence[Placed]]],
        spec: ModelSpec,
    ) -> None:
        self.run, self.traces, self.calls = run, traces, calls
        self._layers = run.layout.layers_of_stages(spec.num_layers)
        self._experts = [list(filter(spec.has_experts, layers)) for layers in self._layers]

    def deviations(
        self, expected: Mapping[int, Sequence[Mapping[tuple[Any, ...], Collective]]]
    ) -> Iterator[Deviation]:
        """Every call that differs. ``expected``: for each rank, the rows of each of its steps."""
        for rank, steps in expected.items():
            for step, rows in enumerate(steps):
                yield from self._of_step(rank, step, rows)

    def _of_step(
        self, rank: int, step: int, rows: Mapping[tuple[Any, ...], Collective]
    ) -> Iterator[Deviation]:
        placed = self.calls.get(rank, {}).get(step, [])
        seen = Counter(row.key for row, *_ in placed)
        wanted = Counter({key: row.count for key, row in rows.items()})
        for key in seen if seen != wanted else ():
            for row, time, index in self._surplus(rank, step, key, seen[key] - wanted[key]):
                yield self._deviation("surplus", rank, step, row, time, index)
        replaced = Counter(row.op for row, *_ in placed if row.key not in wanted)
        for key, row in rows.items():
            missing = max(wanted[key] - seen[key], 0)
            covered = min(missing, replaced[row.op])
            replaced[row.op] -= covered
            start = self.traces[rank].busy_steps[step].start_us
            for number in range(missing - covered):
                time, index = (start, None) if number else self._gap(rank, step, key, start)
                yield self._deviation("missing", rank, step, row, time, index)

    def _surplus(
        self, rank: int, step: int, key: tuple[Any, ...], number: int
    ) -> Iterator[tuple[Collective, float, int | None]]:
        placed = self.calls[rank][step]
        own = [call for call in placed if call[0].key == key]
        odd = self._odd(rank, step, key, own, len(own) - 1) if number == 1 < len(own) else None
        if odd is not None:
            # the later of two calls close together, placed where the call before it belongs
            if odd + 1 < len(own) and own[odd + 1][2] - own[odd][2] < _MOST_APART_US:
                odd += 1
            row, time, _ = own[odd]
            yield row, time, max(0, self._index(placed, time) - 1)
            return
        for row, time, _ in own[len(own) - number :] if number > 0 else ():
            yield row, time, self._index(placed, time)

    def _gap(
        self, rank: int, step: int, key: tuple[Any, ...], start: float
    ) -> tuple[float, int | None]:
        """Where one call of ``key`` is missing: the time of the one before, and its place."""
        placed = self.calls.get(rank, {}).get(step, [])
        own = [call for call in placed if call[0].key == key]
        index = self._odd(rank, step, key, own, len(own) + 1)
        before = own[:index]
        return (before[-1][1] if before else start), index

    def _odd(
        self, rank: int, step: int, key: tuple[Any, ...], own: Sequence[Placed], number: int
    ) -> int | None:
        """Which call has no like in a like step with ``number``: of another rank, or this one's nearest.

        Ranks leave a collective together, so the ends tell more than the starts; on another rank
        they are those of the same calls.
        """
        stage = self.run.layout.stage_of(rank)
        peers = [r for r in self.calls if r != rank and self.run.layout.stage_of(r) == stage]
        nearest = sorted(self.calls.get(rank, {}), key=lambda other: abs(other - step))
        ours = [end for *_, end in own]
        for other_rank, other in [*((p, step) for p in peers), *((rank, n) for n in nearest)]:
            placed = self.calls[other_rank].get(other, [])
            ends = [end for row, _, end in placed if row.key == key]
            if len(ends) == number:
                longer, shorter = (ends, ours) if number > len(ours) else (ours, ends)
                return _odd_one(longer, shorter, together=other_rank != rank)
        return None

    def _index(self, placed: Sequence[Placed], time: float) -> int:
        """How many all-reduces of the step come before ``time``."""
        return sum(other.op == "all_reduce" and start < time for other, start, _ in placed)

    def _deviation(
        self,
        kind: Literal["missing", "surplus"],
        rank: int,
        step: int,
        row: Collective,
        time: float,
        index: int | None,
    ) -> Deviation:
        layer, part = None, None
        if row.group == "ep":
            layer, part = self._expert_layer(rank, step, row, time, kind), "experts"
        elif row.op == "all_reduce" and index is not None:
            layer, part = self._place(row.stage, index)
        return Deviation(
            kind=kind,
            rank=rank,
            stage=row.stage,
            step=step,
            phase=row.phase,
            layer=layer,
            part=part,
            op=row.op,
            shape=row.input_shape,
            time_us=round(time, 3),
        )

    def _expert_layer(
        self, rank: int, step: int, row: Collective, time: float, kind: str
    ) -> int | None:
        """By how many like calls of the step come before."""
        placed = self.calls.get(rank, {}).get(step, [])
        own = [start for other, start, _ in placed if other.key == row.key]
        layers = self._experts[row.stage]
        before = sum(start < time or (kind == "missing" and start == time) for start in own)
        index = before // (round(max(len(own), row.count) / max(len(layers), 1)) or 1)
        return layers[index] if index < len(layers) else None

    def _place(self, stage: int, index: int) -> tuple[int | None, str]:
        """Two all-reduces a layer, and one before them for the embedding on the first stage."""
        if stage == 0 and index == 0:
            return None, "embedding"
        layer, block = divmod(index - (stage == 0), 2)
        layers = self._layers[stage]
        if layer >= len(layers):
            return None, "after the last layer"
        return layers[layer], ("attention", "MLP")[block]


def _odd_one(longer: Sequence[float], shorter: Sequence[float], *, together: bool) -> int | None:
    """Index of the one time of ``longer`` that has no like in ``shorter``.

    ``together``: both are ends of the same calls, which two ranks leave at the same time up to
    the difference of their clocks; otherwise they are like steps, and the gaps are compared.
    Differences count up to a limit, so that a rank that was held up once does not decide.
    """
    if len(longer) != len(shorter) + 1 or len(shorter) < 2:
        return None
    long, short = np.array(longer), np.array(shorter)
    costs = [_misfit(np.delete(long, index), short, together) for index in range(len(long))]
    return int(np.argmin(costs))


def _misfit(one: np.ndarray, other: np.ndarray, together: bool) -> float:
    if together:
        differences = one - other
        limit, errors = _MOST_APART_US, differences - np.median(differences)
    else:
        limit, errors = float(np.median(np.diff(other))), np.diff(one) - np.diff(other)
    return float(np.minimum(np.abs(errors), limit).sum())
