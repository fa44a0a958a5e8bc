"""Run a command's work on every rank of its layout, however the ranks come to be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from weft.cli import options
from weft.cli.messages import in_options
from weft.cli.output import check_written
from weft.engine.config import EngineConfig
from weft.errors import UserError
from weft.launch import elastic
from weft.launch.environment import SlurmTask, is_launched, slurm_task
from weft.vocabulary import conventions
from weft.vocabulary.checks import check_seconds
from weft.vocabulary.layout import Layout

AllReduce = Annotated[str, "auto (weft's where it can be used), weft or library (nccl's, gloo's)."]


def _positive_seconds(value: float) -> float:
    try:
        check_seconds("timeout_s", value)
    except UserError as error:
        raise typer.BadParameter(str(error).partition(": ")[2]) from None
    return value


def _address(value: str) -> str:
    if not re.fullmatch(r"[\w.:%-]{1,253}", value, re.ASCII):
        raise typer.BadParameter("must be a host name or address")
    return value


def _device(value: str) -> str:
    if value not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("choose auto, cpu or cuda")
    return value


Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", callback=_device)]
Timeout = Annotated[
    float,
    typer.Option(help="Longest wait for another rank, in seconds.", callback=_positive_seconds),
]


check_all_reduce = conventions.check_all_reduce
"""UserError for an unknown --all-reduce, before anything is started."""


WeightsDtype = Annotated[str | None, "float8_e4m3fn: round the layers' matrices while loading."]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine of ours is built with."""

    seed: Annotated[int, "Of unseeded sampling, dummy weights and made-up prompts."] = 0
    weights: Annotated[str, "auto (checkpoint if there is one) or dummy."] = "auto"
    dtype: Annotated[str | None, "Instead of the model's own."] = None
    weights_dtype: WeightsDtype = None
    engine: options.Engine = "weft"
    all_reduce: AllReduce = "auto"
    speculate: Annotated[
        str | None,
        "ngram:4 guesses 4 tokens a step from what a request said before.",
    ] = None

    def config(self, **more: Any) -> dict[str, Any]:
        """Keyword arguments of LLM, checked; None among ``more``: the engine's own default."""
        chosen = {name: value for name, value in more.items() if value is not None}
        chosen |= {"conventions": self.engine, "seed": self.seed, "weights": self.weights}
        given = {
            "dtype": self.dtype,
            "weights_dtype": self.weights_dtype,
            "speculate": self.speculate,
        }
        chosen |= {name: value for name, value in given.items() if value is not None}
        check_all_reduce(self.all_reduce)
        EngineConfig(**chosen)
        return chosen | {"all_reduce": self.all_reduce}


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """Where the ranks are, what they run on and how long they wait for each other."""

    nnodes: Annotated[
        int,
        typer.Option("--nnodes", "--nodes", help="Machines; one launcher is started on each."),
    ] = 1
    node_rank: Annotated[int, typer.Option(min=0, help="This machine's number, from 0.")] = 0
    master_addr: Annotated[str, typer.Option(help="Address of machine 0.", callback=_address)] = (
        "127.0.0.1"
    )
    master_port: Annotated[int, typer.Option(min=1, max=65535, help="Free port on machine 0.")] = (
        29500
    )
    device: Device = "auto"
    timeout: Timeout = 120.0

    def start(self, context: typer.Context, layout: Layout, work: Callable[[], None]) -> None:
        """Call ``work`` in every rank's process.

        A layout of one rank runs here. Under torchrun this process is one of the ranks.
        Otherwise it becomes the launcher of this machine, or of this task of srun: it starts
        the same command line once a rank and waits.
        """
        launch = self.launch_of(layout)
        if launch is None:
            from weft.launch.worker import worker

            with worker(partial(in_options, command=context.command)):
                work()
                check_written()
        elif layout.world_size == 1:
            work()
        else:
            elastic.run_ranks(["-m", "weft", *context.obj], launch)

    def launch_of(self, layout: Layout) -> elastic.Launch | None:
        """What ``start`` will start, None inside a launched rank; UserError where it cannot."""
        if is_launched():
            return None
        layout.check_started()
        task = slurm_task()
        if task is not None:
            return _launch_of_task(layout, task)
        return elastic.Launch(
            ranks_per_node=layout.ranks_per_node,
            num_nodes=layout.nodes,
            node_rank=self.node_rank,
            master_address=self.master_addr,
            master_port=self.master_port,
        )


def _launch_of_task(layout: Layout, task: SlurmTask) -> elastic.Launch:
    """Each task of srun starts an equal share of the ranks: one, or all of its machine."""
    share, rest = divmod(layout.world_size, task.num_tasks)
    if rest:
        layout.check_world(task.num_tasks)
    return elastic.Launch(
        ranks_per_node=share,
        num_nodes=task.num_tasks,
        node_rank=task.number,
        master_address=task.master_address,
        master_port=task.master_port,
        first_local_rank=share * task.local_number,
    )
