"""Options that several commands share, so that they are spelled and explained once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from weft.cli.output import OutputFormat
from weft.errors import LayoutError
from weft.vocabulary.conventions import ENGINES
from weft.vocabulary.layout import Layout
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload, workload_named

Model = Annotated[str, typer.Argument(help="Built-in name, directory with config.json, or hub id.")]
Decode = Annotated[int | None, "Generated tokens a sequence [128]."]
WorkloadName = Annotated[
    str,
    typer.Option("--workload", help="Named workload: paper, prefill-heavy, decode-heavy, chat."),
]
Engine = Annotated[str, f"Whose schedule: {', '.join(ENGINES)}."]
Format = Annotated[OutputFormat, typer.Option("--format", help="table, json or csv.")]


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How the ranks divide the model."""

    tp: Annotated[int, "Tensor-parallel degree."] = 1
    pp: Annotated[int, "Pipeline stages."] = 1
    sp: Annotated[int, "Sequence parallelism: 1, or the value of --tp."] = 1
    ep: Annotated[int, "Expert-parallel degree (models with experts)."] = 1
    dp: Annotated[int, "Data-parallel replicas."] = 1
    dcp: Annotated[int, "Tensor-parallel ranks that share a cache's positions (decode)."] = 1
    stage_layers: Annotated[str | None, "Layers of each pipeline stage, e.g. 10,12,10."] = None

    def on(self, nodes: int = 1) -> Layout:
        """The Layout on so many machines, or a one-line LayoutError."""
        split = None if self.stage_layers is None else _integers(self.stage_layers)
        return Layout(
            tp=self.tp,
            pp=self.pp,
            sp=self.sp,
            ep=self.ep,
            dp=self.dp,
            dcp=self.dcp,
            nodes=nodes,
            stage_layers=split,
        )


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"--stage-layers {text}: write numbers separated by commas, e.g. 10,12,10"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """What changes the steps of a request, where nothing is run."""

    speculate: Annotated[
        str | None,
        "Drafts of each decode step: ngram:4, mtp:2, eagle:3, or mtp:2:1.7 where 1.7 of "
        "them are accepted on average [all].",
    ] = None
    prefill_layout: Annotated[
        str | None,
        "Other ranks do the prompts and send their cache, e.g. tp4, tp2xpp2.",
    ] = None

    def parsed(self) -> dict[str, Any]:
        """Keyword arguments of closed_form and dry_run."""
        speculate, prefill = self.speculate, self.prefill_layout
        return {
            "speculation": None if speculate is None else Speculation.parse(speculate),
            "prefill_layout": None if prefill is None else _parsed_layout(prefill),
        }


def _parsed_layout(text: str) -> Layout:
    try:
        return Layout.parse(text)
    except LayoutError as error:
        raise LayoutError(f"--prefill-layout {text}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """How much is asked for; None: what the named workload says."""

    prompt: Annotated[int | None, "Prompt tokens a sequence [128]."] = None
    decode: Decode = None
    batch: Annotated[int | None, "Sequences in the batch [1]."] = None

    def of(self, name: str) -> Workload:
        """The named workload with these parts replaced."""
        return self.on(workload_named(name))

    def on(self, base: Workload) -> Workload:
        """The workload with these parts replaced."""
        return Workload(
            prompt_tokens=base.prompt_tokens if self.prompt is None else self.prompt,
            decode_tokens=base.decode_tokens if self.decode is None else self.decode,
            batch=base.batch if self.batch is None else self.batch,
        )
