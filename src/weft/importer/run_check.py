"""Whether trace files belong together: one run, every rank once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from weft.errors import FileFormatError
from weft.importer.clocks import ClockOffset
from weft.importer.execution_trace import complete
from weft.importer.facts import ModelFacts
from weft.importer.pairing import same_steps
from weft.importer.rank_trace import RankTrace
from weft.vocabulary.layout import Layout

_MOST_CONTRADICTION_US: Final = 1000.0
_MOST_APART_US: Final = 10e6


def by_rank(traces: Sequence[RankTrace]) -> dict[int, RankTrace]:
    """The traces by rank. Raises FileFormatError where they cannot be of one run."""
    traces = _completed(traces)
    if len(traces) == 1 and traces[0].rank is None:
        return {0: traces[0]}
    found: dict[int, RankTrace] = {}
    for trace in traces:
        if trace.rank is None:
            raise FileFormatError(
                f"{trace.path}: does not say its rank (no distributedInfo, no rank in its name); "
                "import it alone or name it rank<N>"
            )
        if trace.rank in found:
            raise FileFormatError(
                f"{trace.path}: is rank {trace.rank}, and so is {found[trace.rank].path}; "
                "give each rank of one run once (of a run to compare with, name the folder in `against`)"
            )
        found[trace.rank] = trace
    _check_alike(list(found.values()))
    return dict(sorted(found.items()))


def _completed(traces: Sequence[RankTrace]) -> list[RankTrace]:
    """One trace a rank where a profiler's comes with the execution trace of the same rank."""
    timed = {trace.rank: trace for trace in traces if trace.is_timed}
    found = [trace for trace in traces if trace.is_timed]
    for other in traces:
        if other.is_timed:
            continue
        is_only = other.rank is None and len(timed) == 1
        same = next(iter(timed.values())) if is_only else timed.get(other.rank)
        if same is None:
            found.append(other)
        else:
            complete(same, other)
    if len({trace.is_timed for trace in found}) > 1:
        raise FileFormatError(
            f"{next(t.path for t in found if not t.is_timed)}: an execution trace without the "
            "profiler's trace of its rank; give both of every rank, or only one kind"
        )
    return found


def _check_alike(traces: Sequence[RankTrace]) -> None:
    first = traces[0]
    for other in traces[1:]:
        for name in ("world_size", "backend", "engine_version"):
            one, two = getattr(first, name), getattr(other, name)
            if one != two:
                raise _different(first, other, f"{name.replace('_', ' ')} {one} and {two}")


def check_steps(traces: Mapping[int, RankTrace], layout: Layout) -> list[str]:
    """What ranks of one replica lack of each other's steps, each as one sentence.

    Raises FileFormatError where they ran other steps.
    """
    replicas: dict[int, list[RankTrace]] = {}
    for rank, trace in traces.items():
        replicas.setdefault(layout.replica_of(rank), []).append(trace)
    return [
        sentence
        for own in replicas.values()
        for trace in own
        if (sentence := _lacking(trace, max(own, key=lambda other: len(other.busy_steps))))
    ]


def _lacking(trace: RankTrace, longest: RankTrace) -> str | None:
    missing = len(longest.busy_steps) - len(trace.busy_steps)
    if not (trace.truncated or longest.truncated or same_steps(trace, longest)):
        counts = f"{len(longest.busy_steps)} and {len(trace.busy_steps)} with requests"
        raise _different(longest, trace, f"their steps differ: {counts}")
    if not missing:
        return None
    return f"{trace.path.name} lacks {missing} of the {len(longest.busy_steps)} steps of {longest.path.name}"


def check_models(facts: Mapping[int, ModelFacts], traces: Mapping[int, RankTrace]) -> None:
    """Raise FileFormatError where ranks of one run show models of other dimensions."""
    for name in ("hidden_size", "vocab_size"):
        seen: dict[int, int] = {}
        for rank, own in facts.items():
            value = getattr(own, name)
            if value is not None and not (name == "vocab_size" and _may_be_slices(own)):
                seen.setdefault(value, rank)
        if len(seen) > 1:
            (one, first), (two, second) = list(seen.items())[:2]
            raise _different(traces[first], traces[second], f"{name} {one} and {two}")


def _may_be_slices(facts: ModelFacts) -> bool:
    """In a pipeline, a gather of received slices passes for logits if the receive is not recorded."""
    hidden, vocabulary = facts.hidden_size, facts.vocab_size
    return facts.num_stages > 1 and bool(hidden and vocabulary and not vocabulary % hidden)


def check_clocks(clocks: Mapping[int, ClockOffset], traces: Mapping[int, RankTrace]) -> list[str]:
    """Notes on clocks that do not agree; FileFormatError where they cannot be of one run."""
    notes = []
    for rank, clock in clocks.items():
        apart = _certainly_apart(clock)
        if clock.contradiction_us > _MOST_CONTRADICTION_US or apart > _MOST_APART_US:
            how = (
                f"what one sends and the other receives contradicts their clocks by "
                f"{clock.contradiction_us / 1e3:,.1f} ms"
                if clock.contradiction_us > _MOST_CONTRADICTION_US
                else f"their clocks are {apart / 1e6:,.0f} s apart"
            )
            raise _different(
                traces[clock.reference], traces[rank], how, ", or a clock that was set"
            )
        if not clock.is_consistent:
            notes.append(
                f"clocks of rank {clock.reference} and {rank} contradict each other by "
                f"{clock.contradiction_us:,.1f} us: no waiting is told from moving bytes"
            )
        if clock.drift_ppm:
            notes.append(
                f"the clock of rank {rank} drifts by {clock.drift_ppm:,.1f} us a second "
                f"against that of rank {clock.reference}; times are corrected for it"
            )
    return notes


def _different(one: RankTrace, two: RankTrace, how: str, or_else: str = "") -> FileFormatError:
    return FileFormatError(
        f"{one.path} and {two.path}: ranks of different runs{or_else} ({how}); "
        "give the files of one run"
    )


def _certainly_apart(clock: ClockOffset) -> float:
    """How far apart two clocks are at least, where one side of the evidence is open."""
    if (clock.low_us is None) == (clock.high_us is None):
        return 0.0
    return max(clock.low_us or 0.0, -(clock.high_us or 0.0))
