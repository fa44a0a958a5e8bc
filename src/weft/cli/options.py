"""Options that several commands share, so that they are spelled and explained once."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli.output import OutputFormat
from weft.vocabulary.conventions import ENGINES
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload, workload_named

Model = Annotated[str, typer.Argument(help="Built-in name, directory with config.json, or hub id.")]
Tp = Annotated[int, typer.Option(help="Tensor-parallel degree.")]
Pp = Annotated[int, typer.Option(help="Pipeline stages.")]
Sp = Annotated[int, typer.Option(help="Sequence parallelism: 1, or the value of --tp.")]
Ep = Annotated[int, typer.Option(help="Expert-parallel degree (models with experts).")]
Dp = Annotated[int, typer.Option(help="Data-parallel replicas.")]
Nodes = Annotated[int, typer.Option(help="Machines that the ranks are spread over.")]
StageLayers = Annotated[
    str | None, typer.Option(help="Layers of each pipeline stage, e.g. 10,12,10.")
]
Prompt = Annotated[int | None, typer.Option(help="Prompt tokens a sequence [128].")]
Decode = Annotated[int | None, typer.Option(help="Generated tokens a sequence [128].")]
Batch = Annotated[int | None, typer.Option(help="Sequences in the batch [1].")]
WorkloadName = Annotated[
    str,
    typer.Option("--workload", help="Named workload: paper, prefill-heavy, decode-heavy, chat."),
]
Engine = Annotated[str, typer.Option(help=f"Whose schedule: {', '.join(ENGINES)}.")]
Format = Annotated[OutputFormat, typer.Option("--format", help="table, json or csv.")]


def make_layout(
    *,
    tp: int = 1,
    pp: int = 1,
    sp: int = 1,
    ep: int = 1,
    dp: int = 1,
    nodes: int = 1,
    stage_layers: str | None = None,
) -> Layout:
    """The Layout that the options describe, or a one-line LayoutError."""
    split = None if stage_layers is None else _integers(stage_layers)
    return Layout(tp=tp, pp=pp, sp=sp, ep=ep, dp=dp, nodes=nodes, stage_layers=split)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"--stage-layers {text}: write numbers separated by commas, e.g. 10,12,10"
        ) from None


def make_workload(name: str, prompt: int | None, decode: int | None, batch: int | None) -> Workload:
    """The named workload with the given parts replaced."""
    base = workload_named(name)
    return Workload(
        prompt_tokens=base.prompt_tokens if prompt is None else prompt,
        decode_tokens=base.decode_tokens if decode is None else decode,
        batch=base.batch if batch is None else batch,
    )
