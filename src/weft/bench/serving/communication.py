"""The join: how much of TTFT and TPOT the server's engine spent in collectives.

The server's profile gives each engine step and its seconds in collectives; a request's
interval takes from each step that it overlaps the same share of the step's communication as
of the step. Both sides' clocks are seconds since the epoch: exact on one machine, off by the
clocks' difference between two. With several replicas their mean is taken, since the client
does not know which one served it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.bench.serving.definitions import token_arrivals
from weft.bench.serving.records import RequestRecord

PROFILE_SCHEMA = "weft.serve.profile/1"
Floats = NDArray[np.float64]


def communication(
    profile: Mapping[str, Any], records: Sequence[RequestRecord]
) -> dict[str, Any] | None:
    """Mean milliseconds and share of TTFT and TPOT in collectives, by phase and operation.

    None where the profile has no step or no request got two tokens.
    """
    replicas = [steps for steps in profile["replicas"] if steps]
    spans = _spans(records)
    if not replicas or not len(spans):
        return None
    kinds = sorted(
        {(s["phase"], op) for steps in replicas for s in steps for op in s["in_calls_s"]}
    )
    ttft, tpot = [], []
    for phase, op in kinds:
        first, each = _inside(replicas, phase, op, spans)
        ttft.append({"phase": phase, "op": op, "mean_ms": first})
        tpot.append({"phase": phase, "op": op, "mean_ms": each})
    sent, first_s, last_s, later = spans.T
    return {
        "requests": len(spans),
        "steps": sum(map(len, replicas)),
        "ttft": _part(float((first_s - sent).mean()) * 1e3, ttft),
        "tpot": _part(float(((last_s - first_s) / later).mean()) * 1e3, tpot),
    }


def _spans(records: Sequence[RequestRecord]) -> Floats:
    """Rows (sent, first token, last token, tokens after the first chunk), epoch seconds."""
    epoch_s = time.time() - time.perf_counter()
    rows = []
    for record in records:
        arrivals = token_arrivals(record) if record.completed else []
        if len(arrivals) > 1:
            later = record.num_output_tokens - arrivals[0][1]
            rows.append(
                (
                    record.sent_s + epoch_s,
                    arrivals[0][0] + epoch_s,
                    arrivals[-1][0] + epoch_s,
                    later,
                )
            )
    return np.array(rows, dtype=np.float64)


def _inside(
    replicas: Sequence[Sequence[Mapping[str, Any]]], phase: str, op: str, spans: Floats
) -> tuple[float, float]:
    """Mean milliseconds of (phase, op) in the spans up to the first token, and a later token."""
    sent, first, last, later = spans.T
    ttft = tpot = 0.0
    for steps in replicas:
        edges, spent = _cumulative(steps, phase, op)
        at_sent, at_first, at_last = (np.interp(at, edges, spent) for at in (sent, first, last))
        ttft += float((at_first - at_sent).mean()) * 1e3 / len(replicas)
        tpot += float(((at_last - at_first) / later).mean()) * 1e3 / len(replicas)
    return ttft, tpot


def _cumulative(steps: Sequence[Mapping[str, Any]], phase: str, op: str) -> tuple[Floats, Floats]:
    """Seconds spent in (phase, op) up to each step's start and end."""
    edges: list[float] = []
    spent = [0.0]
    for step in steps:
        edges += [max(step["start_s"], edges[-1]) if edges else step["start_s"], step["end_s"]]
        own = step["in_calls_s"].get(op, 0.0) if step["phase"] == phase else 0.0
        spent += [spent[-1] + own, spent[-1] + own]
    return np.array(edges), np.array(spent[:-1])


def _part(mean_ms: float, by: list[dict[str, Any]]) -> dict[str, Any]:
    inside_ms = sum(row["mean_ms"] for row in by)
    return {
        "mean_ms": mean_ms,
        "communication_ms": inside_ms,
        "share": inside_ms / mean_ms if mean_ms > 0 else None,
        "by": [row | {"share": row["mean_ms"] / mean_ms if mean_ms > 0 else None} for row in by],
    }
