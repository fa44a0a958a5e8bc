"""Where this process stands in a run: torchrun's variables, Slurm's, or alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.errors import EnvironmentUnavailable, UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """This process among the ranks of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def is_verbose() -> bool:
    """Whether other libraries' logs and tracebacks are wanted: WEFT_VERBOSE=1."""
    return os.environ.get("WEFT_VERBOSE", "0") not in ("", "0")


def silence_libraries() -> None:
    """Before torch is loaded: no logs and stack frames of its C++ parts, unless asked for."""
    if not is_verbose():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def is_launched(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher (torchrun, srun) started this process as one of several ranks."""
    env = os.environ if environment is None else environment
    return "RANK" in env or _is_slurm_task(env)


def current_rank() -> RankPlace:
    """Read the launcher's variables; under srun, complete them for torch.distributed."""
    env = os.environ
    if "RANK" in env:
        return RankPlace(
            rank=_integer(env, "RANK"),
            world_size=_integer(env, "WORLD_SIZE"),
            local_rank=_integer(env, "LOCAL_RANK", "0"),
        )
    if _is_slurm_task(env):
        return _join_slurm()
    return RankPlace()


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


def _is_slurm_task(env: Mapping[str, str]) -> bool:
    return "SLURM_PROCID" in env and env.get("SLURM_NTASKS", "1") != "1"


def _join_slurm() -> RankPlace:
    env = os.environ
    place = RankPlace(
        rank=_integer(env, "SLURM_PROCID"),
        world_size=_integer(env, "SLURM_NTASKS"),
        local_rank=_integer(env, "SLURM_LOCALID", "0"),
    )
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    env.setdefault("MASTER_ADDR", first_host(hosts))
    env.setdefault("MASTER_PORT", str(20000 + _integer(env, "SLURM_JOB_ID", "0") % 20000))
    return place


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
