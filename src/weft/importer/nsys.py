"""Nsight Systems exports (``nsys export --type sqlite``) as the events of a profiler trace.

Tables by NVIDIA's documentation of the export schema: CUPTI_ACTIVITY_KIND_KERNEL,
CUPTI_ACTIVITY_KIND_RUNTIME, NVTX_EVENTS and StringIds; times in nanoseconds. NVTX ranges give
the steps (vLLM with VLLM_NVTX_SCOPES_FOR_PROFILING=1) and, from NCCL, the collectives. An
export records no sizes: those of the schedule come from the model and the labels.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from weft.errors import FileFormatError
from weft.importer.events import Event

MAGIC: Final = b"SQLite format 3\0"
_BATCH: Final = 20_000
_EXPORT_LIMIT_S: Final = 600
_VERSION: Final = re.compile(r"_v\d+$|_ptsz$")
_KERNELS: Final = (
    "SELECT k.start, k.end, s.value, k.correlationId, k.streamId "
    "FROM CUPTI_ACTIVITY_KIND_KERNEL k JOIN StringIds s ON s.id = k.demangledName"
)
_LAUNCHES: Final = (
    "SELECT r.start, r.end, s.value, r.correlationId, r.globalTid "
    "FROM CUPTI_ACTIVITY_KIND_RUNTIME r JOIN StringIds s ON s.id = r.nameId "
    "WHERE s.value LIKE '%Launch%'"
)
_RANGES: Final = (
    "SELECT n.start, n.end, COALESCE(n.text, s.value), NULL, n.globalTid "
    "FROM NVTX_EVENTS n LEFT JOIN StringIds s ON s.id = n.textId WHERE n.end IS NOT NULL"
)
_QUERIES: Final = {
    "CUPTI_ACTIVITY_KIND_KERNEL": ("kernel", _KERNELS),
    "CUPTI_ACTIVITY_KIND_RUNTIME": ("cuda_runtime", _LAUNCHES),
    "NVTX_EVENTS": ("user_annotation", _RANGES),
}


class NsysReader:
    """One pass over an export, with the interface of ``reader.TraceReader``."""

    truncated = False
    num_damaged = 0

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._on_bytes = on_bytes or (lambda _: None)

    def batches(self) -> Iterator[list[Event]]:
        """Yield the events. Raises FileFormatError where the file is no export of one process."""
        try:
            database = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            yield from self._batches(database)
        except sqlite3.Error as error:
            raise FileFormatError(
                f"{self.path}: not an export of Nsight Systems ({error}); "
                "make one with nsys export --type sqlite"
            ) from None
        self._on_bytes(self.path.stat().st_size)

    def _batches(self, database: sqlite3.Connection) -> Iterator[list[Event]]:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not {"StringIds", "CUPTI_ACTIVITY_KIND_KERNEL"} <= tables:
            raise sqlite3.DatabaseError("no table of kernels")
        self._check_one_process(database)
        for table, (category, query) in _QUERIES.items():
            if table in tables:
                rows = database.execute(query)
                while some := rows.fetchmany(_BATCH):
                    yield [_event(category, *row) for row in some]

    def _check_one_process(self, database: sqlite3.Connection) -> None:
        query = "SELECT COUNT(DISTINCT deviceId) FROM CUPTI_ACTIVITY_KIND_KERNEL"
        (devices,) = database.execute(query).fetchone()
        if devices > 1:
            raise FileFormatError(
                f"{self.path}: kernels of {devices} GPUs in one export; "
                "run nsys profile once a rank, one GPU each"
            )


def _event(
    category: str, start: int, end: int, name: str | None, correlation: int | None, thread: Any
) -> Event:
    name = _VERSION.sub("", name or "")
    if category == "user_annotation" and name.startswith("nccl"):
        name = f"nccl:{name.removeprefix('nccl')}"
    args = {} if correlation is None else {"correlation": correlation}
    return Event(
        ph="X",
        cat=category,
        name=name,
        tid=msgspec.Raw(msgspec.json.encode(thread)),
        ts=start / 1e3,
        dur=(end - start) / 1e3,
        args=msgspec.Raw(msgspec.json.encode(args)),
    )


def exported(path: Path, folder: str) -> Path:
    """The sqlite export of a ``.nsys-rep`` file, made in ``folder`` by the nsys program."""
    target = Path(folder) / f"{path.stem}.sqlite"
    command = f"nsys export --type sqlite --output {path.stem}.sqlite {path.name}"
    program = shutil.which("nsys")
    if program is None:
        raise FileFormatError(
            f"{path}: a recording of Nsight Systems, and there is no nsys program here to read it; "
            f"where there is one: {command}"
        )
    done = subprocess.run(  # noqa: S603  the user's own program and file
        [program, "export", "--type", "sqlite", "--output", str(target), str(path)],
        capture_output=True,
        text=True,
        timeout=_EXPORT_LIMIT_S,
        check=False,
    )
    if done.returncode or not target.is_file():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FileFormatError(f"{path}: nsys could not export it ({reason})")
    return target
