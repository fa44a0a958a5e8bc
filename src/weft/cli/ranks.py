"""Run a command's work on every rank of its layout, however the ranks come to be."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from weft.cli.messages import in_options
from weft.cli.output import check_written
from weft.launch import elastic
from weft.launch.environment import SlurmTask, is_launched, slurm_task
from weft.vocabulary import conventions
from weft.vocabulary.checks import check_seconds
from weft.vocabulary.layout import Layout

NumNodes = Annotated[
    int, typer.Option("--nnodes", "--nodes", help="Machines; one launcher is started on each.")
]
NodeRank = Annotated[int, typer.Option(min=0, help="This machine's number, from 0.")]
MasterPort = Annotated[int, typer.Option(min=1, max=65535, help="Free port on machine 0.")]
AllReduce = Annotated[
    str, typer.Option(help="auto (weft's where it can be used), weft or library (nccl's, gloo's).")
]


def _positive_seconds(value: float) -> float:
    check_seconds("timeout_s", value)
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
MasterAddress = Annotated[
    str, typer.Option("--master-addr", help="Address of machine 0.", callback=_address)
]
Timeout = Annotated[
    float,
    typer.Option(help="Longest wait for another rank, in seconds.", callback=_positive_seconds),
]


check_all_reduce = conventions.check_all_reduce
"""UserError for an unknown --all-reduce, before anything is started."""


def on_every_rank(
    context: typer.Context,
    layout: Layout,
    work: Callable[[], None],
    *,
    node_rank: int = 0,
    master_address: str = "127.0.0.1",
    master_port: int = 29500,
) -> None:
    """Call ``work`` in every rank's process.

    A layout of one rank runs here. Under torchrun this process is one of the ranks.
    Otherwise it becomes the launcher of this machine, or of this task of srun: it starts
    the same command line once a rank and waits.
    """
    launch = launch_of(layout, node_rank, master_address, master_port)
    if launch is None:
        from weft.launch.worker import worker

        with worker(partial(in_options, command=context.command)):
            work()
            check_written()
    elif layout.world_size == 1:
        work()
    else:
        elastic.run_ranks(["-m", "weft", *context.obj], launch)


def launch_of(
    layout: Layout, node_rank: int = 0, master_address: str = "127.0.0.1", master_port: int = 29500
) -> elastic.Launch | None:
    """What ``on_every_rank`` will start, None inside a launched rank; UserError where it cannot."""
    if is_launched():
        return None
    layout.check_started()
    task = slurm_task()
    if task is not None:
        return _launch_of_task(layout, task)
    return elastic.Launch(
        ranks_per_node=layout.ranks_per_node,
        num_nodes=layout.nodes,
        node_rank=node_rank,
        master_address=master_address,
        master_port=master_port,
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
