"""Read trace files, in parallel where there are cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from weft.importer.collect import read_rank
from weft.importer.rank_trace import RankTrace

_WORTH_PROCESSES_BYTES: Final = 8 << 20


def load_ranks(
    paths: Sequence[Path],
    num_processes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> list[RankTrace]:
    """Read every file.

    ``num_processes``: None for one a core where the files are large enough to be worth
    it. Only calls, steps and merged compute intervals come back from a process.
    """
    sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    wanted = min(len(paths), _wanted_processes(sum(sizes), num_processes))
    if wanted < 2:
        return [read_rank(path, on_bytes) for path in paths]
    traces = []
    with ProcessPoolExecutor(wanted, mp_context=get_context("spawn")) as pool:
        for trace, size in zip(pool.map(read_rank, paths), sizes, strict=True):
            traces.append(trace)
            if on_bytes is not None:
                on_bytes(size)
    return traces


def _wanted_processes(total_bytes: int, num_processes: int | None) -> int:
    if num_processes is not None:
        return num_processes
    if total_bytes < _WORTH_PROCESSES_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
