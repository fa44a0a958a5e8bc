"""Loaded by Python when it starts: plants the fault that FAULT names into one rank.

FAULT is RANK:MOMENT:HOW, MOMENT start, prefill, decode or work (inside a step's work, which
the engine guards), HOW raise, kill or freeze; the file FAULT_AT is written at that moment.
"""

import os
import pathlib
import signal


def _fall(how):
    pathlib.Path(os.environ["FAULT_AT"]).touch()
    if how == "raise":
        raise RuntimeError("planted")
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


def _plant(moment, how):
    from weft.engine import llm
    from weft.engine.engine import Engine

    if moment == "start":
        llm.open_groups = lambda *_, **__: _fall(how)
        return
    from weft.engine.runner import StageRunner

    owner, name = (StageRunner, "forward") if moment == "work" else (Engine, "step")
    real, left = getattr(owner, name), [1 if moment == "prefill" else 20]

    def falls(self, *arguments, **options):
        left[0] -= 1
        if not left[0]:
            _fall(how)
        return real(self, *arguments, **options)

    setattr(owner, name, falls)


if "FAULT" in os.environ:
    rank, moment, how = os.environ["FAULT"].split(":")
    if os.environ.get("RANK") == rank:
        _plant(moment, how)
