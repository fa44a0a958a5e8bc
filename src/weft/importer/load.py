"""Read trace files, in parallel where there are cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from weft.importer.collect import read_rank
from weft.importer.phases import attribute
from weft.importer.rank_trace import RankTrace

_WORTH_PROCESSES_BYTES: Final = 8 << 20


def load_ranks(paths: Sequence[Path], num_processes: int | None = None) -> list[RankTrace]:
    """Read every file and attribute its calls to steps.

    ``num_processes``: None for one a core where the files are large enough to be worth
    it. Only calls, steps and merged compute intervals come back from a process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = min(len(paths), cores or 1) if num_processes is None else num_processes
    large = sum(path.stat().st_size for path in paths if path.is_file()) > _WORTH_PROCESSES_BYTES
    if wanted < 2 or len(paths) < 2 or not (large or num_processes):
        return [load_rank(path) for path in paths]
    with ProcessPoolExecutor(wanted, mp_context=get_context("spawn")) as pool:
        return list(pool.map(load_rank, paths))


def load_rank(path: Path) -> RankTrace:
    trace = read_rank(path)
    attribute(trace)
    return trace
