"""weft runs, measures, explains and plans multi-GPU LLM inference by its communication.

The names below are loaded when they are first used, so that ``import weft`` and the
parts that need no torch stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.api import import_traces as import_traces
    from weft.api import plan as plan
    from weft.api import predict as predict
    from weft.api import predict_latency as predict_latency
    from weft.api import predict_serving as predict_serving
    from weft.api import run_study as run_study
    from weft.api import trace as trace
    from weft.bench.allreduce_bench import AllReduceBench as AllReduceBench
    from weft.bench.decode_bench import DecodeBench as DecodeBench
    from weft.bench.serving.bench import ServeBench as ServeBench
    from weft.bench.serving.result import ServeResult as ServeResult
    from weft.bench.serving.sweep import Sweep as Sweep
    from weft.comm.all_reduce import all_reduce as all_reduce
    from weft.comm.all_reduce import all_reduce_residual_rms_norm as all_reduce_residual_rms_norm
    from weft.engine.config import EngineConfig as EngineConfig
    from weft.engine.config import LLMOptions as LLMOptions
    from weft.engine.llm import LLM as LLM
    from weft.engine.request import Completion as Completion
    from weft.engine.request import SamplingParams as SamplingParams
    from weft.errors import CheckFailed as CheckFailed
    from weft.errors import CommunicationError as CommunicationError
    from weft.errors import EnvironmentUnavailable as EnvironmentUnavailable
    from weft.errors import FileFormatError as FileFormatError
    from weft.errors import FrozenRankError as FrozenRankError
    from weft.errors import LayoutError as LayoutError
    from weft.errors import LoneFailureError as LoneFailureError
    from weft.errors import LostRankError as LostRankError
    from weft.errors import ModelConfigError as ModelConfigError
    from weft.errors import ReplicaLeftError as ReplicaLeftError
    from weft.errors import StepError as StepError
    from weft.errors import UserError as UserError
    from weft.errors import WeftError as WeftError
    from weft.errors import WorkloadError as WorkloadError
    from weft.importer.imported import ImportedTrace as ImportedTrace
    from weft.planning.planner import Plan as Plan
    from weft.prediction.prediction import Prediction as Prediction
    from weft.prediction.quantity import Estimate as Estimate
    from weft.prediction.serving import Serving as Serving
    from weft.vocabulary.layout import Layout as Layout
    from weft.vocabulary.model_spec import ModelSpec as ModelSpec
    from weft.vocabulary.result import BenchResult as BenchResult
    from weft.vocabulary.schedule import Collective as Collective
    from weft.vocabulary.schedule import Schedule as Schedule
    from weft.vocabulary.speculation import Speculation as Speculation
    from weft.vocabulary.workload import Workload as Workload

__version__ = "0.2.0"

_NAMES = {
    "weft.api": "import_traces plan predict predict_latency predict_serving run_study trace",
    "weft.bench.allreduce_bench": "AllReduceBench",
    "weft.bench.decode_bench": "DecodeBench",
    "weft.bench.serving.bench": "ServeBench",
    "weft.bench.serving.result": "ServeResult",
    "weft.bench.serving.sweep": "Sweep",
    "weft.comm.all_reduce": "all_reduce all_reduce_residual_rms_norm",
    "weft.engine.config": "EngineConfig LLMOptions",
    "weft.engine.llm": "LLM",
    "weft.engine.request": "Completion SamplingParams",
    "weft.errors": "CheckFailed CommunicationError EnvironmentUnavailable FileFormatError FrozenRankError LayoutError LoneFailureError LostRankError ModelConfigError ReplicaLeftError StepError UserError WeftError WorkloadError",
    "weft.importer.imported": "ImportedTrace",
    "weft.planning.planner": "Plan",
    "weft.prediction.prediction": "Prediction",
    "weft.prediction.quantity": "Estimate",
    "weft.prediction.serving": "Serving",
    "weft.vocabulary.layout": "Layout",
    "weft.vocabulary.model_spec": "ModelSpec",
    "weft.vocabulary.result": "BenchResult",
    "weft.vocabulary.schedule": "Collective Schedule",
    "weft.vocabulary.speculation": "Speculation",
    "weft.vocabulary.workload": "Workload",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
