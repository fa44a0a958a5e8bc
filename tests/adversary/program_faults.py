"""Faults to plant in the CPU's all-reduce."""

from __future__ import annotations

from dataclasses import dataclass

from adversary.machine import Patch


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong, where, and whether a lost rank shows it."""

    name: str
    patch: Patch
    lose: bool = False


RUNNER, MEMORY, SOCKETS = "program_runner.py", "shared_memory.py", "sockets.py"

FAULTS = (
    Fault(
        name="a slice is announced before it is there",
        patch=(
            RUNNER,
            "        if steps:\n            for view, start, stop",
            "        self._segment.publish(index)\n        if steps:\n            for view, start, stop",
        ),
    ),
    Fault(
        name="one outbox instead of two",
        patch=(MEMORY, "        return self.epoch & 1\n", "        return 0\n"),
    ),
    Fault(
        name="one header instead of two",
        patch=(MEMORY, "_HEADERS + (self.epoch & 1) * _HEADER_FIELDS", "_HEADERS"),
    ),
    Fault(
        name="a wait for the step before",
        patch=(
            MEMORY,
            "wanted = self.epoch * _STEPS + step + 1",
            "wanted = self.epoch * _STEPS + step",
        ),
    ),
    Fault(
        name="no wait before a sum",
        patch=(RUNNER, "self._segment.wait(near, index, step.name)", "pass"),
    ),
    Fault(
        name="headers are compared before they are there",
        patch=(RUNNER, 'segment.wait(place, 0, "start")', "pass"),
    ),
    Fault(
        name="the slices of a call share one place",
        patch=(RUNNER, "first += -(-size // _ALIGNMENT) * _ALIGNMENT", "first += 0"),
    ),
    Fault(
        name="neighbouring slices become one too short",
        patch=(RUNNER, "max(stop, merged[-1][1])", "merged[-1][1]"),
    ),
    Fault(
        name="a sender goes on before its slice has gone",
        patch=(
            SOCKETS,
            "for failing, work in works:",
            "for failing, work in works[: len(receives)]:",
        ),
    ),
    Fault(
        name="a receiver goes on before its slice has come",
        patch=(
            SOCKETS,
            "for failing, work in works:",
            "for failing, work in works[len(receives) :]:",
        ),
    ),
    Fault(
        name="nodes agree one round short",
        patch=(SOCKETS, "distance *= 2", "distance *= 4"),
    ),
    Fault(
        name="a failure is told to nobody",
        patch=(MEMORY, "_GAVE_UP] = max(self.epoch, 1)", "_GAVE_UP] = 0"),
        lose=True,
    ),
    Fault(
        name="who has left the call is named",
        patch=(
            MEMORY,
            "_PROGRESS] < wanted]\n        return",
            "_PROGRESS] < 2**62]\n        return",
        ),
        lose=True,
    ),
    Fault(
        name="a time-out that does not come",
        patch=(MEMORY, "waited > self.timeout_s or", "waited > 3600 or"),
        lose=True,
    ),
)
