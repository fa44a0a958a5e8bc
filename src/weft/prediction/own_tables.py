"""What was measured on the H200 machine, and weft's all-reduces from it as tables."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, Final

from weft.fabric.fabric import MeasuredTable

_SAME_LINKS: Final = {"hgx-h200": "h200-nvlink"}
"""Fabrics whose GPUs are linked as on the measured one."""


@cache
def measurements(name: str) -> dict[str, Any]:
    """A file of measurements of the package (``h200x4``, ``weft_h200x4``, ...), as it is."""
    file = resources.files("weft.prediction") / "data" / "measurements" / f"{name}.json"
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


@cache
def weft_tables(fabric: str) -> tuple[MeasuredTable, ...]:
    """All-reduces of weft's own as measured on a built-in fabric; none on the others."""
    data = measurements("weft_h200x4")
    if _SAME_LINKS.get(fabric, fabric) != data["fabric"]:
        return ()
    own = data["all_reduce"]
    return tuple(
        MeasuredTable(
            algorithm=own["algorithm"],
            ranks=table["ranks"],
            dtype="bfloat16",
            bytes=tuple(table["bytes"]),
            latency_us=tuple(table["latency_us"]),
            source=own["method"],
        )
        for table in own["tables"]
    )
