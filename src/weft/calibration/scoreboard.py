"""The scoreboard: predictions beside measurements, errors, coverage and decisions."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from weft.calibration.measured import MeasuredRun
from weft.calibration.public_rows import PublicRow, ask, split_of
from weft.prediction.quantity import Estimate
from weft.prediction.serving import Serving

TTFT: Final = "TTFT (ms)"
TPOT: Final = "TPOT (ms)"
NEAR: Final = 0.95

Peer = Mapping[str, tuple[float, float]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number and its prediction; ``peer`` is aiconfigurator's, where it has one."""

    source: str
    role: str
    name: str
    quantity: str
    measured: float
    predicted: float
    low: float
    high: float
    peer: float | None = None

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
    """Errors of one group of scores. ``inside``: share within the 90 % interval.

    shared: scores that the peer has too; shared_error and peer_error are over these.
    """

    source: str
    role: str
    quantity: str
    count: int
    mean_error: float
    median_error: float
    bias: float
    inside: float
    shared: int
    shared_error: float | None
    peer_error: float | None


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Choosing (layout, concurrency) for the most tokens/s/GPU under a TPOT limit.

    near_best: share of questions answered with the measured best or within 5 % of it, within the
    limit; over_limit: share of answers that break the limit when measured.
    """

    chooser: str
    questions: int
    near_best: float
    over_limit: float


def score_runs(runs: Sequence[MeasuredRun]) -> list[Score]:
    """Scores of measured runs, each asked as a user asks."""
    scores: list[Score] = []
    for run in runs:
        ttft, tpot = run.ask()
        source = run.source + (f", {run.all_reduce}" if run.all_reduce else "")
        for quantity, measured, estimate in (
            (TTFT, run.ttft_ms, ttft),
            (TPOT, run.tpot_ms, tpot),
        ):
            if measured is not None:
                scores.append(_score(source, run.role, run.name, quantity, measured, estimate))
    return scores


def _score(
    source: str, role: str, name: str, quantity: str, measured: float, estimate: Estimate
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


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The public rows with weft's answers (a text says why there is none) and the split."""

    pairs: tuple[tuple[PublicRow, Serving | str], ...]
    split: Mapping[str, str]

    def answered(self) -> Iterable[tuple[PublicRow, Serving]]:
        return ((row, found) for row, found in self.pairs if isinstance(found, Serving))


def ask_all(
    rows: Sequence[PublicRow],
    progress: Progress = lambda _done, _all: None,
    *,
    every: int = 1,
) -> Answers:
    """One row in ``every``, asked as a user would; the split is that of all rows."""
    pairs = []
    for done, row in enumerate(rows[::every]):
        progress(done, len(rows) // every)
        pairs.append((row, ask(row)))
    return Answers(pairs=tuple(pairs), split=split_of(rows))


def score_answers(answers: Answers, peer: Peer) -> list[Score]:
    """Scores of the answered rows; a source is a family on a GPU."""
    scores: list[Score] = []
    for row, serving in answers.answered():
        theirs = peer.get(row.identity, (None, None))
        source = f"{row.family} on {row.system}"
        role = answers.split[row.sweep]
        for quantity, measured, times, other in (
            (TTFT, row.ttft_ms, serving.ttft_ms, theirs[0]),
            (TPOT, row.tpot_ms, serving.tpot_ms, theirs[1]),
        ):
            plain = _score(source, role, row.identity, quantity, measured, times.mean)
            scores.append(replace(plain, peer=other))
    return scores


def summaries(scores: Sequence[Score], by: Callable[[Score], str] | None = None) -> list[Summary]:
    """One summary a (group, role, quantity); groups are sources where ``by`` is not given."""
    groups: dict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in scores:
        groups[by(score) if by else score.source, score.role, score.quantity].append(score)
    return [_summary(key, groups[key]) for key in sorted(groups)]


def _summary(key: tuple[str, str, str], group: Sequence[Score]) -> Summary:
    errors = [score.error for score in group]
    shared = [score for score in group if score.peer is not None]
    return Summary(
        source=key[0],
        role=key[1],
        quantity=key[2],
        count=len(group),
        mean_error=statistics.mean(map(abs, errors)),
        median_error=statistics.median(map(abs, errors)),
        bias=statistics.median(errors),
        inside=statistics.mean(score.is_inside for score in group),
        shared=len(shared),
        shared_error=statistics.mean(abs(s.error) for s in shared) if shared else None,
        peer_error=statistics.mean(abs(s.peer_error or 0.0) for s in shared) if shared else None,
    )


def decisions(answers: Answers, limits_ms: Sequence[float]) -> list[Decisions]:
    """The predictor's choices among the measured rows of a question, and the rule "largest TP".

    A question is (sweep, prompt, decode, limit) with several layouts, one row within the limit.
    """
    groups: dict[tuple[object, ...], list[tuple[PublicRow, Serving]]] = defaultdict(list)
    for row, serving in answers.answered():
        if answers.split[row.sweep] == "test":
            groups[row.sweep, row.prompt_tokens, row.decode_tokens].append((row, serving))
    questions = [
        (same, limit)
        for same in groups.values()
        for limit in limits_ms
        if len({row.gpus for row, _ in same}) > 1 and any(r.tpot_ms <= limit for r, _ in same)
    ]
    return [
        _decisions("weft", questions, _by_value),
        _decisions("larger TP is faster", questions, _by_rule),
    ]


Question = tuple[list[tuple[PublicRow, Serving]], float]


def _by_value(same: Sequence[tuple[PublicRow, Serving]], limit: float) -> PublicRow | None:
    within = [pair for pair in same if pair[1].tpot_ms.value <= limit]
    best = max(within, key=lambda pair: pair[1].tokens_per_s / pair[0].gpus, default=None)
    return best[0] if best else None


def _by_rule(same: Sequence[tuple[PublicRow, Serving]], limit: float) -> PublicRow | None:
    widest = max(row.gpus for row, _ in same)
    within = [row for row, _ in same if row.gpus == widest and row.tpot_ms <= limit]
    return max(within, key=lambda row: row.tokens_per_s_per_gpu, default=None)


def _decisions(
    chooser: str,
    questions: Sequence[Question],
    choose: Callable[[Sequence[tuple[PublicRow, Serving]], float], PublicRow | None],
) -> Decisions:
    near, over = 0, 0
    for same, limit in questions:
        best = max(r.tokens_per_s_per_gpu for r, _ in same if r.tpot_ms <= limit)
        choice = choose(same, limit)
        if choice is not None and choice.tpot_ms > limit:
            over += 1
        elif choice is not None:
            near += choice.tokens_per_s_per_gpu >= NEAR * best
    count = max(len(questions), 1)
    return Decisions(
        chooser=chooser, questions=len(questions), near_best=near / count, over_limit=over / count
    )


def document(
    scores: Sequence[Score], choices: Sequence[Decisions], answers: Answers | None = None
) -> dict[str, Any]:
    """The ``weft.scoreboard/1`` object."""
    found: dict[str, Any] = {
        "schema": "weft.scoreboard/1",
        "rows": [asdict(score) | {"error": score.error} for score in scores],
        "summaries": [asdict(summary) for summary in summaries(scores)],
        "decisions": [asdict(choice) for choice in choices],
    }
    if answers is not None:
        refusals: dict[str, int] = defaultdict(int)
        for _, answer in answers.pairs:
            if isinstance(answer, str):
                refusals[answer.split(";")[0][:80]] += 1
        found["answered"] = {
            "rows": len(answers.pairs),
            "answered": sum(1 for _ in answers.answered()),
            "refused": dict(sorted(refusals.items(), key=lambda item: -item[1])),
        }
    return found
