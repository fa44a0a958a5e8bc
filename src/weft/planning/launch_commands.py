"""The command lines that run a layout: weft, vLLM, SGLang, torchrun and Slurm."""

from __future__ import annotations

from dataclasses import dataclass

from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """One way to run the layout, or why the engine cannot run it so."""

    engine: str
    command: str


def launch_commands(spec: ModelSpec, layout: Layout, gpus_per_node: int) -> list[LaunchCommand]:
    """Commands for every node.

    Node 0 is ``$HEAD``, each node knows its ``$NODE_RANK``; ``$MODEL`` is the model's hub id
    or directory, which other engines need.
    """
    commands = {
        "weft": _weft(spec, layout),
        "vllm": _vllm(layout),
        "sglang": _sglang(layout),
        "torchrun": _torchrun(spec, layout, gpus_per_node),
        "slurm": _slurm(spec, layout, gpus_per_node),
    }
    return [LaunchCommand(engine=name, command=text) for name, text in commands.items()]


def _degrees(layout: Layout, names: tuple[str, ...]) -> str:
    values = ((name, getattr(layout, name)) for name in names)
    return "".join(f" --{name} {value}" for name, value in values if value > 1)


def _weft(spec: ModelSpec, layout: Layout) -> str:
    return f"weft run {spec.name}{_degrees(layout, ('tp', 'pp', 'sp', 'ep', 'dp'))}"


def _torchrun(spec: ModelSpec, layout: Layout, gpus_per_node: int) -> str:
    width = min(gpus_per_node, layout.world_size)
    rendezvous = (
        " --node-rank $NODE_RANK --rdzv-backend c10d --rdzv-endpoint $HEAD:29500"
        if layout.nodes > 1
        else " --standalone"
    )
    return (
        f"torchrun --nnodes {layout.nodes} --nproc-per-node {width}{rendezvous} "
        f"--no-python weft run {spec.name}"
        f"{_degrees(layout, ('tp', 'pp', 'sp', 'ep', 'dp', 'nodes'))}"
    )


def _slurm(spec: ModelSpec, layout: Layout, gpus_per_node: int) -> str:
    width = min(gpus_per_node, layout.world_size)
    return (
        f"srun --nodes {layout.nodes} --ntasks-per-node {width} --gpus-per-node {width} "
        f"{_weft(spec, layout)}{_degrees(layout, ('nodes',))}"
    )


def _vllm(layout: Layout) -> str:
    options = f" --tensor-parallel-size {layout.tp}" if layout.tp > 1 else ""
    options += f" --pipeline-parallel-size {layout.pp}" if layout.pp > 1 else ""
    options += f" --data-parallel-size {layout.dp}" if layout.dp > 1 else ""
    options += " --enable-expert-parallel" if layout.ep > 1 else ""
    if layout.sp > 1:
        options += ' --compilation-config \'{"pass_config": {"enable_sp": true}}\''
    if layout.nodes > 1:
        options += " --distributed-executor-backend ray"
    return f"vllm serve $MODEL{options}"


def _sglang(layout: Layout) -> str:
    options = f" --tp-size {layout.tp}" if layout.tp > 1 else ""
    options += f" --pp-size {layout.pp}" if layout.pp > 1 else ""
    options += f" --dp-size {layout.dp}" if layout.dp > 1 else ""
    options += f" --ep-size {layout.ep}" if layout.ep > 1 else ""
    if layout.nodes > 1:
        options += f" --nnodes {layout.nodes} --node-rank $NODE_RANK --dist-init-addr $HEAD:5000"
    return f"python -m sglang.launch_server --model-path $MODEL{options}"
