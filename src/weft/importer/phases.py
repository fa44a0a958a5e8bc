"""Which step a call belongs to, by time and not by thread.

Inside a label: that step. Outside: engines receive what a step needs before its
label opens, and send what it made after its label closed, so a receive belongs to
the next non-empty step, and so does what follows it before that step (the gather
of received slices); everything else belongs to the last non-empty step before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from weft.importer.rank_trace import RankTrace, TracedCall, TracedStep


def attribute(trace: RankTrace) -> None:
    """Set ``step`` and ``precedes_step`` of every call, in order of issue."""
    steps = trace.busy_steps
    host = _Timeline([(step.start_us, step.end_us) for step in steps])
    device = _Timeline(_device_spans(steps))
    for call in trace.calls:
        unlinked = call.on_device and call.host_us is None
        timeline = device if unlinked and device.spans else host
        call.step, call.precedes_step = timeline.place(call, call.issued_us)
    _place_ids(trace)
    _mark_slices(trace.calls)


def _place_ids(trace: RankTrace) -> None:
    """Weft returns a step's sampled ids while later steps are under way, in the steps' order."""
    sampled = [number for number, step in enumerate(trace.busy_steps) if step.label.logits]
    returned = (call for call in trace.calls if call.operation == "broadcast")
    for number, call in zip(sampled, returned, strict=False):
        call.step, call.precedes_step = number, False


def _mark_slices(calls: Sequence[TracedCall]) -> None:
    """Each received slice is gathered once; what is gathered after that are logits."""
    received: Counter[tuple[int | None, int | None]] = Counter()
    for call in calls:
        key = (call.step, call.input_elements)
        if call.operation == "recv" and call.source == "record":
            received[key] += 1
        elif call.operation == "all_gather" and received[key]:
            received[key] -= 1
            call.gathers_slices = True


def _device_spans(steps: Sequence[TracedStep]) -> list[tuple[float, float]]:
    """Device spans of the steps, or none where a step has no kernels of its own in the trace."""
    spans = [
        (step.device_start_us, step.device_end_us)
        for step in steps
        if step.device_start_us is not None and step.device_end_us is not None
    ]
    return spans if len(spans) == len(steps) else []


class _Timeline:
    """Spans in time order, and what was last seen between them."""

    def __init__(self, spans: list[tuple[float, float]]) -> None:
        self.spans = spans
        self._starts = [start for start, _ in spans]
        self._receiving_for: int | None = None

    def place(self, call: TracedCall, time_us: float) -> tuple[int | None, bool]:
        """The step of a call issued at ``time_us``; calls must come in order of time."""
        after = bisect_right(self._starts, time_us)
        if after and time_us <= self.spans[after - 1][1]:
            return after - 1, False
        if call.operation == "recv":
            self._receiving_for = after
        if self._receiving_for == after:
            return (after, True) if after < len(self.spans) else (None, True)
        return (after - 1, False) if after else (None, False)
