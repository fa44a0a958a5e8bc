"""Plans: every layout predicted, those that fit ranked, ties and the Pareto front marked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from weft.errors import LayoutError
from weft.planning.launch_commands import LaunchCommand, launch_commands
from weft.planning.objective import Candidate, Objective, Question, Refusal
from weft.planning.space import Cluster, Rejection, layouts
from weft.prediction.prediction import PARTS
from weft.prediction.quantity import Z_90
from weft.vocabulary.layout import Layout

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Layouts that fit, best first (one row each), and those that do not, with the reason.

    points: every feasible layout at every concurrency tried (for the Pareto front).
    """

    question: Question
    cluster: Cluster
    ranked: tuple[Candidate, ...]
    points: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]

    @property
    def best(self) -> Candidate:
        return self.ranked[0]

    @property
    def noise(self) -> float:
        """Relative difference below which two scores are a tie.

        Errors of inputs are common to all layouts; what remains is the time model's own
        error, once for each of the two.
        """
        spread = self.question.machine.profile.tpot_spread.value
        return math.expm1(Z_90 * math.sqrt(2) * spread)

    def is_tied(self, candidate: Candidate) -> bool:
        """Whether the candidate's distance from the best is within the noise."""
        return candidate.score <= self.best.score * (1 + self.noise)

    def find(self, name: str) -> Candidate | Rejection:
        """The ranked or rejected layout of that name; LayoutError where it is not in the space."""
        try:
            wanted = _canonical(name, self.cluster.num_gpus)
        except LayoutError as error:
            raise LayoutError(f"`explain`: {error}") from None
        for candidate in self.ranked:
            if candidate.layout.name in wanted:
                return candidate
        for rejection in self.rejected:
            if rejection.name in wanted:
                return rejection
        raise LayoutError(
            f"`explain` {name}: not a layout of {self.cluster.num_gpus} GPUs; "
            f"its degrees must multiply to {self.cluster.num_gpus} (or divide it)"
        )

    def pareto(self) -> tuple[Candidate, ...]:
        """Points that no other beats in both TPOT and tokens a second a GPU, by TPOT."""
        front: list[Candidate] = []
        for point in sorted(self.points, key=lambda item: (item.tpot_ms, -item.tokens_per_s)):
            if not front or point.tokens_per_s > front[-1].tokens_per_s:
                front.append(point)
        return tuple(front)

    def to_dict(self) -> dict[str, Any]:
        question, machine = self.question, self.question.machine
        front = {id(point) for point in self.pareto()}
        return {
            "schema": "weft.plan/1",
            "model": question.spec.name,
            "objective": question.objective.value,
            "machine": {
                "gpus": self.cluster.num_gpus,
                "gpus_per_node": self.cluster.gpus_per_node,
                "accelerator": machine.accelerator.name,
                "fabric": machine.fabric.name,
                "engine": machine.profile.name,
            },
            "workload": asdict(question.workload),
            "noise": self.noise,
            "plans": [self._row(candidate, id(candidate) in front) for candidate in self.ranked],
            "pareto": [self._point(point) for point in self.pareto()],
            "rejected": [{"layout": item.name, "reason": item.reason} for item in self.rejected],
            "commands": {item.engine: item.command for item in self.commands()},
        }

    def commands(self) -> list[LaunchCommand]:
        """How each engine is started on the best layout."""
        best, question = self.best, self.question
        requests = None if best.serving is None else -(-best.concurrency // best.layout.dp)
        return launch_commands(
            question.spec,
            best.layout,
            self.cluster.gpus_per_node,
            question.machine.weight_dtype,
            question.machine.cache_dtype,
            requests,
            tokens=question.workload.prompt_tokens + question.workload.decode_tokens,
            batched_tokens=question.machine.profile.server_batched_tokens,
        )

    def _row(self, candidate: Candidate, on_front: bool) -> dict[str, Any]:
        prediction, serving = candidate.prediction, candidate.serving
        document = prediction.to_dict()
        document.pop("provenance")
        decode = prediction.decode
        return {
            "layout": candidate.layout.name,
            "batch": candidate.concurrency,
            "ttft_ms": (serving or prediction).ttft_ms.to_dict(),
            "tpot_ms": (serving or prediction).tpot_ms.to_dict(),
            "throughput_per_gpu": candidate.tokens_per_s / self.cluster.num_gpus,
            "memory_gib": (serving or prediction).memory.total_gb * 1e9 / 2**30,
            "note": "within noise of the best" if self.is_tied(candidate) else None,
            "on_front": on_front,
            "breakdown_us": {part: getattr(decode, f"{part}_ms") * 1e3 for part in PARTS},
            "score": candidate.score,
            "prediction": document,
            "serving": serving.to_dict() if serving else None,
        }

    def _point(self, point: Candidate) -> dict[str, Any]:
        return {
            "layout": point.layout.name,
            "batch": point.concurrency,
            "tpot_ms": point.tpot_ms,
            "throughput_per_gpu": point.tokens_per_s / self.cluster.num_gpus,
        }


def make_plan(
    question: Question, cluster: Cluster, progress: Progress = lambda _done, _total: None
) -> Plan:
    """Predict the whole space of ``cluster`` and rank it.

    ``progress`` is told how many layouts of how many are done. Raises LayoutError where nothing can run, naming the nearest reason.
    """
    profile = question.machine.profile
    usable, rejected = layouts(
        question.spec,
        cluster,
        sequence_parallel=profile.sequence_parallel,
        context_parallel=profile.context_parallel,
    )
    ranked: list[Candidate] = []
    points: list[Candidate] = []
    for done, layout in enumerate(usable):
        progress(done, len(usable))
        answer = question.answer(layout)
        if isinstance(answer, Refusal):
            rejection = Rejection(name=layout.name, reason=answer.reason, excess=answer.excess)
            rejected.append(rejection)
        else:
            ranked.append(answer[0])
            points += answer
    _confirm(question, ranked, points, rejected)
    if not ranked:
        raise LayoutError(_nothing_fits(question, cluster, rejected))
    return Plan(
        question=question,
        cluster=cluster,
        ranked=tuple(sorted(ranked, key=_order)),
        points=tuple(points),
        rejected=tuple(rejected),
    )


_FINALISTS: Final = 2


def _confirm(
    question: Question,
    ranked: list[Candidate],
    points: list[Candidate],
    rejected: list[Rejection],
) -> None:
    """Put simulations in the place of the first candidates by formula, and order them again."""
    for item in sorted(ranked, key=_order)[:_FINALISTS]:
        found = question.confirmed(item)
        ranked.remove(item)
        points.remove(item)
        if isinstance(found, Refusal):
            name = item.layout.name
            rejected.append(Rejection(name=name, reason=found.reason, excess=found.excess))
        else:
            ranked.append(found)
            points.append(found)


def _order(candidate: Candidate) -> tuple[float, int, int]:
    """By score; equal scores prefer the simpler layout."""
    return candidate.score, candidate.layout.pp, candidate.layout.sp


def _nothing_fits(question: Question, cluster: Cluster, rejected: list[Rejection]) -> str:
    short = [item for item in rejected if item.reason.startswith("needs")]
    closest = (short or rejected)[-1]
    limits = [item for item in rejected if item.excess]
    if limits:
        closest = min(limits, key=lambda item: item.excess)
    fix = "relax `ttft` or `tpot`" if limits else "use more `num_gpus` or a larger `accelerator`"
    if question.objective is Objective.LATENCY and not limits:
        fix += " or a smaller `batch`"
    return (
        f"`num_gpus` {cluster.num_gpus}: no layout of {question.spec.name} can run "
        f"({closest.name}: {closest.reason}); {fix}"
    )


def _canonical(name: str, num_gpus: int) -> set[str]:
    """The names that ``name`` may mean: as written, or filled up with replicas."""
    layout = Layout.parse(name)
    names = {layout.name}
    if num_gpus % layout.world_size == 0 and layout.dp == 1:
        replicas = num_gpus // layout.world_size
        names.add(replace(layout, dp=replicas).name)
    return names
