"""Where this process stands in a run: torchrun's variables, Slurm's, or alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Final

from weft.errors import EnvironmentUnavailable, UserError

if TYPE_CHECKING:
    import torch


FIRST_LOCAL_RANK: Final = "WEFT_FIRST_LOCAL_RANK"
"""The variable that counts the ranks of a machine before those that one of its launchers starts."""


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """This process among the ranks of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class SlurmTask:
    """This process among the tasks of ``srun``, and where they meet."""

    number: int
    num_tasks: int
    local_number: int
    master_address: str
    master_port: int


def is_verbose() -> bool:
    """Whether other libraries' logs and tracebacks are wanted: WEFT_VERBOSE=1."""
    return os.environ.get("WEFT_VERBOSE", "0") not in ("", "0")


def silence_libraries() -> None:
    """Before torch is loaded: no logs and stack frames of its C++ parts, unless asked for."""
    if not is_verbose():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def is_launched() -> bool:
    """Whether a launcher (weft's, torchrun) started this process as one of several ranks."""
    return "RANK" in os.environ


def current_rank() -> RankPlace:
    """Read the launcher's variables; a task of srun completes them for torch.distributed."""
    env = os.environ
    task = slurm_task()
    if task is not None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        env.update(zip(names, map(str, astuple(task)), strict=True))
    if not is_launched():
        return RankPlace()
    return RankPlace(
        rank=_integer(env, "RANK"),
        world_size=_integer(env, "WORLD_SIZE"),
        local_rank=_integer(env, "LOCAL_RANK", "0") + _integer(env, FIRST_LOCAL_RANK, "0"),
    )


def device_type(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"`device` {name}: choose auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise EnvironmentUnavailable("`device` cuda: torch sees no GPU here; use `device` cpu")
    return "cuda" if has_gpu and name != "cpu" else "cpu"


def pick_device(name: str, local_rank: int) -> torch.device:
    """This rank's device: the CPU, or the GPU of its number, made current."""
    import torch

    if device_type(name) == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise EnvironmentUnavailable(
            f"local rank {local_rank} has no GPU: this node has {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def slurm_task() -> SlurmTask | None:
    """The task of several that this process is; None elsewhere and in a rank of a launcher."""
    env = os.environ
    if is_launched() or "SLURM_PROCID" not in env or env.get("SLURM_NTASKS", "1") == "1":
        return None
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    port = str(20000 + _integer(env, "SLURM_JOB_ID", "0") % 20000)
    return SlurmTask(
        number=_integer(env, "SLURM_PROCID"),
        num_tasks=_integer(env, "SLURM_NTASKS"),
        local_number=_integer(env, "SLURM_LOCALID", "0"),
        master_address=env.get("MASTER_ADDR") or first_host(hosts),
        master_port=_integer(env, "MASTER_PORT", port),
    )


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: ``gpu[003-005,9],login`` -> ``gpu003``."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", node_list)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST {node_list!r}: not a node list; set MASTER_ADDR")
    numbers = re.split(r"[,-]", match[2])[0] if match[2] else ""
    return match[1] + numbers


def _integer(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = env.get(name, default)
    if value is None or not value.isdigit():
        raise UserError(f"environment variable {name}={value!r}: must be a number")
    return int(value)
