"""weft runs, measures, explains and plans multi-GPU LLM inference by its communication.

The names below are loaded when they are first used, so that ``import weft`` and the
parts that need no torch stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.api import plan as plan
    from weft.api import predict as predict
    from weft.api import trace as trace
    from weft.comm.all_reduce import all_reduce as all_reduce
    from weft.comm.all_reduce import (
        all_reduce_residual_rms_norm as all_reduce_residual_rms_norm,
    )
    from weft.engine.llm import LLM as LLM
    from weft.engine.request import Completion as Completion
    from weft.engine.request import SamplingParams as SamplingParams
    from weft.vocabulary.layout import Layout as Layout
    from weft.vocabulary.model_spec import ModelSpec as ModelSpec
    from weft.vocabulary.schedule import Schedule as Schedule
    from weft.vocabulary.workload import Workload as Workload

__version__ = "0.1.0"

_HOMES = {
    "Completion": "weft.engine.request",
    "LLM": "weft.engine.llm",
    "Layout": "weft.vocabulary.layout",
    "ModelSpec": "weft.vocabulary.model_spec",
    "SamplingParams": "weft.engine.request",
    "Schedule": "weft.vocabulary.schedule",
    "Workload": "weft.vocabulary.workload",
    "all_reduce": "weft.comm.all_reduce",
    "all_reduce_residual_rms_norm": "weft.comm.all_reduce",
    "plan": "weft.api",
    "predict": "weft.api",
    "trace": "weft.api",
}

__all__ = [
    "LLM",
    "Completion",
    "Layout",
    "ModelSpec",
    "SamplingParams",
    "Schedule",
    "Workload",
    "__version__",
    "all_reduce",
    "all_reduce_residual_rms_norm",
    "plan",
    "predict",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
