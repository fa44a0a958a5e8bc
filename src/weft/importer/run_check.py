"""Whether trace files belong together: one run, every rank once."""

from __future__ import annotations

from collections.abc import Sequence

from weft.errors import FileFormatError
from weft.importer.pairing import same_steps
from weft.importer.rank_trace import RankTrace
from weft.vocabulary.layout import Layout


def by_rank(traces: Sequence[RankTrace]) -> dict[int, RankTrace]:
    """The traces by rank. Raises FileFormatError where they cannot be of one run."""
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
                "give each rank of one run once"
            )
        found[trace.rank] = trace
    _check_alike(list(found.values()))
    return dict(sorted(found.items()))


def _check_alike(traces: Sequence[RankTrace]) -> None:
    first = traces[0]
    for other in traces[1:]:
        for what, one, two in (
            ("world size", first.world_size, other.world_size),
            ("backend", first.backend, other.backend),
            ("engine version", first.engine_version, other.engine_version),
        ):
            if one != two:
                raise FileFormatError(
                    f"{first.path} and {other.path}: ranks of different runs "
                    f"({what} {one} and {two}); give the files of one run"
                )


def check_steps(traces: dict[int, RankTrace], layout: Layout) -> list[str]:
    """Raise FileFormatError where ranks of a replica ran other steps; note missing ranks."""
    replicas: dict[int, RankTrace] = {}
    for rank, trace in traces.items():
        first = replicas.setdefault(layout.replica_of(rank), trace)
        if trace.truncated or first.truncated or same_steps(first, trace):
            continue
        raise FileFormatError(
            f"{first.path} and {trace.path}: ranks of different runs (their steps differ: "
            f"{len(first.busy_steps)} and {len(trace.busy_steps)} with requests); "
            "give the files of one run"
        )
    missing = [rank for rank in range(layout.world_size) if rank not in traces]
    if not missing:
        return []
    listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return [f"partial: rank {listed} of {layout.world_size} not given"]
