"""The command lines that run a layout: weft, vLLM, SGLang, torchrun and Slurm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from weft.prediction.prediction import FLOAT8
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """One way to run the layout, or why the engine cannot run it so."""

    engine: str
    command: str


def launch_commands(
    spec: ModelSpec,
    layout: Layout,
    gpus_per_node: int,
    weight_dtype: str | None = None,
    cache_dtype: str | None = None,
    requests: int | None = None,
    tokens: int | None = None,
    batched_tokens: int | None = None,
) -> list[LaunchCommand]:
    """Commands to start on every node, or why an engine cannot run the layout.

    Node 0 is ``$HEAD``, each node knows its ``$NODE_RANK``; ``$MODEL`` is the model's hub id
    or directory, which other engines need. weight_dtype, cache_dtype: as in the plan; None is
    the model's.
    requests: how many a replica should run at once, where the plan is about a server.
    tokens: the longest request's; batched_tokens: rows of one step, as the plan took them.
    The parsers of vLLM 0.33.0 and SGLang 0.5.23 read them (benchmarks/check_commands.py).
    """
    eight_bit = weight_dtype == FLOAT8
    small_cache = cache_dtype == FLOAT8
    own = f" --weights-dtype {FLOAT8}" * eight_bit
    commands = {
        "weft": _weft(spec, layout) + own,
        "vllm": _vllm(
            spec,
            layout,
            eight_bit,
            requests,
            " --kv-cache-dtype fp8" * small_cache
            + _limits("--max-model-len", tokens, "--max-num-batched-tokens", batched_tokens),
        ),
        "sglang": _sglang(
            spec,
            layout,
            gpus_per_node,
            eight_bit,
            requests,
            " --kv-cache-dtype fp8_e4m3" * small_cache
            + _limits("--context-length", tokens, "--chunked-prefill-size", batched_tokens),
        ),
        "torchrun": _torchrun(spec, layout, gpus_per_node) + own,
        "slurm": _slurm(spec, layout, gpus_per_node) + own,
    }
    if layout.dcp > 1 or small_cache:
        why = _NO_SMALL_CACHE if small_cache else _NO_CONTEXT_PARALLELISM
        commands |= dict.fromkeys(("weft", "torchrun", "slurm"), why)
    return [LaunchCommand(engine=name, command=text) for name, text in commands.items()]


def _limits(length: str, tokens: int | None, rows: str, batched: int | None) -> str:
    text = f" {length} {tokens}" if tokens else ""
    return text + (f" {rows} {batched}" if batched else "")


_NO_SMALL_CACHE: Final = "(weft keeps its cache in the model's own type)"
_NO_CONTEXT_PARALLELISM: Final = "(weft keeps whole positions on every rank)"
_NO_SEQUENCE_PARALLELISM: Final = "(has no sequence parallelism)"


def _degrees(layout: Layout) -> str:
    values = ((name, getattr(layout, name)) for name in ("tp", "pp", "sp", "ep", "dp"))
    return "".join(f" --{name} {value}" for name, value in values if value > 1)


def _run(spec: ModelSpec, layout: Layout) -> str:
    """The command of one rank, or of a node's launcher."""
    nodes = f" --nnodes {layout.nodes}" if layout.nodes > 1 else ""
    return f"weft run {spec.name}{_degrees(layout)}{nodes}"


def _weft(spec: ModelSpec, layout: Layout) -> str:
    place = " --node-rank $NODE_RANK --master-addr $HEAD" if layout.nodes > 1 else ""
    return _run(spec, layout) + place


def _torchrun(spec: ModelSpec, layout: Layout, gpus_per_node: int) -> str:
    width = min(gpus_per_node, layout.world_size)
    rendezvous = (
        " --node-rank $NODE_RANK --rdzv-backend c10d --rdzv-endpoint $HEAD:29500"
        if layout.nodes > 1
        else " --standalone"
    )
    return (
        f"torchrun --nnodes {layout.nodes} --nproc-per-node {width}{rendezvous} "
        f"--no-python {_run(spec, layout)}"
    )


def _slurm(spec: ModelSpec, layout: Layout, gpus_per_node: int) -> str:
    width = min(gpus_per_node, layout.world_size)
    return (
        f"srun --nodes {layout.nodes} --ntasks-per-node {width} --gpus-per-node {width} "
        f"{_run(spec, layout)}"
    )


def _vllm(
    spec: ModelSpec, layout: Layout, eight_bit: bool, requests: int | None, limits: str
) -> str:
    """VLLM finds each node's replicas from the node's number; node 0 has the HTTP server."""
    if layout.sp > 1:
        return _NO_SEQUENCE_PARALLELISM
    alone, note = _replica_by_replica(spec, layout)
    options = f" --tensor-parallel-size {layout.tp}" if layout.tp > 1 else ""
    options += f" --pipeline-parallel-size {layout.pp}" if layout.pp > 1 else ""
    options += f" --data-parallel-size {alone.dp}" if alone.dp > 1 else ""
    options += f" --decode-context-parallel-size {layout.dcp}" if layout.dcp > 1 else ""
    options += " --enable-expert-parallel" if layout.ep > 1 else ""
    options += " --quantization fp8" if eight_bit else ""
    options += f" --max-num-seqs {requests}" if requests else ""
    options += limits
    if alone.nodes > 1:
        options += f" --nnodes {alone.nodes} --node-rank $NODE_RANK --master-addr $HEAD"
        options += " $([ $NODE_RANK = 0 ] || echo --headless)"
    return f"vllm serve $MODEL{options}{note}"


def _sglang(
    spec: ModelSpec,
    layout: Layout,
    gpus_per_node: int,
    eight_bit: bool,
    requests: int | None,
    limits: str,
) -> str:
    """Replicas on several nodes are servers of their own, behind SGLang's router."""
    if layout.sp > 1:
        return _NO_SEQUENCE_PARALLELISM
    alone, note = _replica_by_replica(spec, layout)
    if alone.dp > 1 and alone.nodes > 1:
        alone, note = _node_by_node(layout, gpus_per_node)
    options = f" --tp-size {layout.tp}" if layout.tp > 1 else ""
    options += f" --pp-size {layout.pp}" if layout.pp > 1 else ""
    options += f" --dp-size {alone.dp}" if alone.dp > 1 else ""
    options += f" --ep-size {layout.ep}" if layout.ep > 1 else ""
    options += f" --dcp-size {layout.dcp}" if layout.dcp > 1 else ""
    options += " --quantization fp8" if eight_bit else ""
    options += f" --max-running-requests {requests * alone.dp}" if requests else ""
    options += limits
    if alone.nodes > 1:
        options += f" --nnodes {alone.nodes} --node-rank $NODE_RANK --dist-init-addr $HEAD:5000"
    return f"python -m sglang.launch_server --model-path $MODEL{options}{note}"


def _replica_by_replica(spec: ModelSpec, layout: Layout) -> tuple[Layout, str]:
    """Replicas of a model with experts are servers of their own: joined, they share experts."""
    if spec.is_moe and layout.dp > 1:
        return _one_replica(layout, layout.ranks_per_node)
    return layout, ""


def _node_by_node(layout: Layout, gpus_per_node: int) -> tuple[Layout, str]:
    """The replicas of one node as a server, or one replica where it spans nodes."""
    if layout.tp * layout.pp > gpus_per_node or layout.dp % layout.nodes:
        return _one_replica(layout, gpus_per_node)
    node = replace(layout, dp=layout.dp // layout.nodes, nodes=1, gpus_per_node=None)
    return node, "  # a server of its own on every node"


def _one_replica(layout: Layout, gpus_per_node: int) -> tuple[Layout, str]:
    size = layout.tp * layout.pp
    nodes = max(1, size // gpus_per_node)
    replica = replace(layout, dp=1, nodes=nodes, gpus_per_node=None)
    where = f"{nodes} nodes" if nodes > 1 else f"{size} GPU" + ("s" if size > 1 else "")
    return replica, f"  # {layout.dp} servers like this one, each on its own {where}"
