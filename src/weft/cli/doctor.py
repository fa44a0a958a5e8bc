"""``weft doctor``: what this machine has, and what can be used on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows
from weft.errors import UserError

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "safetensors",
    "cuda-bindings",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
    "fastapi",
    "uvicorn",
)


def doctor(output_format: Format = OutputFormat.TABLE) -> None:
    """Say what this machine has, which all-reduce algorithms work here and why others do not.

    Example: weft doctor
    """
    rows = [*_machine(), *_packages(), *_devices(), *_all_reduce(), *_plugins()]
    print_rows(rows, output_format)


def _row(part: str, name: str, state: str, detail: str = "") -> dict[str, str]:
    return {"part": part, "name": name, "state": state, "detail": detail}


def _machine() -> Iterator[dict[str, str]]:
    yield _row("machine", "system", f"{platform.system()} {platform.machine()}")
    yield _row("machine", "python", platform.python_version())
    yield _row("machine", "cores", str(os.cpu_count()))


def _packages() -> Iterator[dict[str, str]]:
    for name in _PACKAGES:
        try:
            yield _row("package", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield _row("package", name, "missing")


def _devices() -> Iterator[dict[str, str]]:
    import torch

    if not torch.cuda.is_available():
        yield _row("device", "cuda", "none", "runs on the CPU with gloo")
        return
    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        yield _row("device", f"cuda:{index}", properties.name, memory)
    peers = all(
        torch.cuda.can_device_access_peer(i, j)
        for i in range(count)
        for j in range(count)
        if i != j
    )
    if count > 1:
        yield _row("device", "peer access", "yes" if peers else "no")


def _all_reduce() -> Iterator[dict[str, str]]:
    import torch.distributed as dist

    for name, available in (
        ("gloo", dist.is_gloo_available()),
        ("nccl", dist.is_nccl_available()),
    ):
        yield _row("all-reduce", name, "yes" if available else "no", "torch.distributed backend")
    yield _shared_memory()
    yield _kernels()
    yield _nvshmem()
    yield _selection()


def _shared_memory() -> dict[str, str]:
    from weft.allreduce.algorithms import PROGRAMS
    from weft.comm.shared_memory import unusable_reason

    problem = unusable_reason()
    state = "no" if problem else "yes"
    return _row("all-reduce", "weft CPU algorithms", state, problem or ", ".join(PROGRAMS))


def _kernels() -> dict[str, str]:
    from weft.kernels.support import local_problem

    problem = local_problem()
    able = "one-shot, two-shot, hierarchical, fused RMSNorm; 2 to 8 ranks"
    return _row("all-reduce", "weft GPU kernels", "no" if problem else "yes", problem or able)


def _nvshmem() -> dict[str, str]:
    from weft.kernels.support import local_problem

    problem = local_problem(transport="nvshmem")
    able = "GPU-initiated puts between nodes (hierarchical_nvshmem)"
    return _row("all-reduce", "weft over NVSHMEM", "no" if problem else "yes", problem or able)


def _selection() -> dict[str, str]:
    from weft.fabric.local import device_fabric

    try:
        fabric = device_fabric()
    except UserError as error:
        return _row("all-reduce", "table of the GPU kernels", "damaged", str(error))
    if fabric is None:
        advice = "weft calibrate --device cuda measures this machine"
        return _row("all-reduce", "table of the GPU kernels", "built in", advice)
    return _row("all-reduce", "table of the GPU kernels", "calibrated", f"fabric {fabric.name}")


def _plugins() -> Iterator[dict[str, str]]:
    from weft.plugins import switch
    from weft.plugins.entry import ENGINES

    choice = os.environ.get(switch.VARIABLE, "")
    for engine, packages, oldest, newest in ENGINES:
        version = switch.installed(packages)
        if version is None:
            yield _row("plugin", engine, "no", "not installed here")
            continue
        reason = switch.refusal(choice or switch.ON, engine, version, oldest, newest)
        state = "off" if choice in switch.OFF or reason else "on"
        yield _row("plugin", engine, state, reason or f"{version}; {switch.VARIABLE}=1 turns it on")
