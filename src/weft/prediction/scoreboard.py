"""The scoreboard: predictions beside measurements, errors, coverage and decisions."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from weft.prediction import silicon
from weft.prediction.latency import predict_latency
from weft.prediction.machines import machine_of_run
from weft.prediction.measured import MeasuredRun, Role
from weft.prediction.quantity import Estimate
from weft.prediction.silicon import SiliconRow
from weft.vocabulary.model_source import load_spec

TTFT: Final = "TTFT (ms)"
TPOT: Final = "TPOT (ms)"

_Key = tuple[str, "Role | Literal['all']", str]
Chooser = Callable[[Sequence[SiliconRow], float], SiliconRow | None]
Peer = Callable[[SiliconRow], tuple[float, float] | None]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number and its prediction; ``peer`` is aiconfigurator's, where asked for.

    is_possible: False where the measured row exceeds what the device can compute.
    """

    source: str
    role: Role
    name: str
    quantity: str
    measured: float
    predicted: float
    low: float
    high: float
    peer: float | None = None
    is_possible: bool = True

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def peer_error(self) -> float | None:
        return None if self.peer is None else self.peer / self.measured - 1

    @property
    def is_inside(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of one group of scores. ``inside``: share within the 90 % interval."""

    source: str
    role: Role | Literal["all"]
    quantity: str
    count: int
    mean_error: float
    median_error: float
    bias: float
    inside: float
    peer_mean_error: float | None


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Quality of choosing (TP, concurrency) for the most tokens/s/GPU under a TPOT limit.

    right_tp: share of questions answered with the measured best TP; over_limit: share of
    answers that break the limit when measured; regret: mean share of the measured best
    tokens/s/GPU that is lost by answers within the limit.
    """

    chooser: str
    questions: int
    right_tp: float
    over_limit: float
    regret: float


def score_runs(runs: Sequence[MeasuredRun]) -> list[Score]:
    """Scores of measured batches, each on the machine that it names."""
    scores: list[Score] = []
    for run in runs:
        machine = machine_of_run(run)
        prediction = predict_latency(load_spec(run.model), run.layout, run.workload, machine)
        source = run.source + (f", {run.all_reduce}" if run.all_reduce else "")
        for quantity, measured, estimate in (
            (TTFT, run.ttft_ms, prediction.ttft_ms),
            (TPOT, run.tpot_ms, prediction.tpot_ms),
        ):
            if measured is not None:
                scores.append(_score(source, run.role, run.name, quantity, measured, estimate))
    return scores


def _score(
    source: str, role: Role, name: str, quantity: str, measured: float, estimate: Estimate
) -> Score:
    return Score(
        source=source,
        role=role,
        name=name,
        quantity=quantity,
        measured=measured,
        predicted=estimate.value,
        low=estimate.low,
        high=estimate.high,
    )


def score_silicon(rows: Sequence[SiliconRow], peer: Peer | None = None) -> list[Score]:
    """Scores of serving rows; rows that are predicted not to fit are left out.

    Rows whose clients the cache does not hold (by the prediction) are a source of their own.
    """
    machine_of = silicon.machines()
    scores: list[Score] = []
    for row in rows:
        serving = silicon.serve(row, machine_of(row))
        if serving is None:
            continue
        theirs = (peer(row) if peer else None) or (None, None)
        is_full = serving.running < serving.concurrency
        source = f"silicon {row.model}" + (", sglang" if row.backend == "sglang" else "")
        source += ", cache full" if is_full else ""
        for quantity, measured, estimate, other in (
            (TTFT, row.ttft_ms, serving.ttft_ms, theirs[0]),
            (TPOT, row.tpot_ms, serving.tpot_ms, theirs[1]),
        ):
            plain = _score(source, row.role, row.name, quantity, measured, estimate)
            scores.append(
                Score(**(asdict(plain) | {"peer": other, "is_possible": row.is_possible}))
            )
    return scores


def summaries(scores: Sequence[Score]) -> list[Summary]:
    """One summary a (source, role, quantity), then all rows together.

    Impossible rows are a group of their own; ``compared`` rows are not among all.
    """
    groups: dict[_Key, list[Score]] = defaultdict(list)
    for score in scores:
        source = score.source if score.is_possible else f"{score.source}, impossible"
        groups[source, score.role, score.quantity].append(score)
    for score in scores:
        if score.role != "compared":
            groups["all but compared", "all", score.quantity].append(score)
    return [_summary(key, group) for key, group in groups.items()]


def _summary(key: _Key, group: Sequence[Score]) -> Summary:
    errors = [score.error for score in group]
    peers = [score.peer_error for score in group if score.peer_error is not None]
    return Summary(
        source=key[0],
        role=key[1],
        quantity=key[2],
        count=len(group),
        mean_error=statistics.mean(map(abs, errors)),
        median_error=statistics.median(map(abs, errors)),
        bias=statistics.median(errors),
        inside=statistics.mean(score.is_inside for score in group),
        peer_mean_error=statistics.mean(map(abs, peers)) if peers else None,
    )


def decisions(rows: Sequence[SiliconRow], limits_ms: Sequence[float]) -> list[Decisions]:
    """The predictor's choices against the rule "larger TP is faster", on the same questions.

    A question is (system, model, prompt, decode, limit) with at least two TP degrees of
    which some row is within the limit. The rule takes the largest TP and, in its favour,
    the best concurrency that was measured to be within the limit.
    """
    machine_of = silicon.machines()
    questions = [
        (same, limit)
        for same in _by_question(row for row in rows if row.role != "compared")
        for limit in limits_ms
        if len({row.tp for row in same}) > 1 and any(row.tpot_ms <= limit for row in same)
    ]

    def chooser(end: Callable[[Estimate], float]) -> Chooser:
        def choose(same: Sequence[SiliconRow], limit: float) -> SiliconRow | None:
            found = [(row, silicon.serve(row, machine_of(row))) for row in same]
            within = [(row, s) for row, s in found if s is not None and end(s.tpot_ms) <= limit]
            best = max(within, key=lambda pair: pair[1].tokens_per_s / pair[0].tp, default=None)
            return best[0] if best else None

        return choose

    return [
        _decisions("weft", questions, chooser(lambda tpot: tpot.value)),
        _decisions("weft, upper end of the interval", questions, chooser(lambda t: t.high)),
        _decisions("larger TP is faster", questions, _largest_tp),
    ]


def _by_question(rows: Iterator[SiliconRow]) -> Iterator[list[SiliconRow]]:
    groups: dict[tuple[object, ...], list[SiliconRow]] = defaultdict(list)
    for row in rows:
        key = (row.system, row.model_path, row.is_8bit, row.prompt_tokens, row.decode_tokens)
        groups[key].append(row)
    yield from groups.values()


def _largest_tp(same: Sequence[SiliconRow], limit: float) -> SiliconRow | None:
    widest = max(row.tp for row in same)
    choices = [row for row in same if row.tp == widest]
    within = [row for row in choices if row.tpot_ms <= limit] or choices[:1]
    return max(within, key=lambda row: row.tokens_per_s_per_gpu)


def _decisions(
    chooser: str,
    questions: Sequence[tuple[Sequence[SiliconRow], float]],
    choose: Chooser,
) -> Decisions:
    right, over, regrets = 0, 0, []
    for same, limit in questions:
        best = max(
            (row for row in same if row.tpot_ms <= limit), key=lambda row: row.tokens_per_s_per_gpu
        )
        choice = choose(same, limit)
        if choice is None:
            regrets.append(1.0)
            continue
        right += choice.tp == best.tp
        if choice.tpot_ms > limit:
            over += 1
        else:
            regrets.append(1 - choice.tokens_per_s_per_gpu / best.tokens_per_s_per_gpu)
    count = max(len(questions), 1)
    return Decisions(
        chooser=chooser,
        questions=len(questions),
        right_tp=right / count,
        over_limit=over / count,
        regret=statistics.mean(regrets) if regrets else 0.0,
    )


def document(scores: Sequence[Score], choices: Sequence[Decisions]) -> dict[str, Any]:
    """The ``weft.scoreboard/1`` object."""
    return {
        "schema": "weft.scoreboard/1",
        "rows": [asdict(score) | {"error": score.error} for score in scores],
        "summaries": [asdict(summary) for summary in summaries(scores)],
        "decisions": [asdict(choice) for choice in choices],
    }
