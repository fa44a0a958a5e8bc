"""The GPU all-reduce on real devices: every case in its own set of processes, bounded in time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from weft.kernels import nvshmem

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SCRIPT = Path(__file__).with_name("allreduce_ranks.py")
SHARED = not torch.cuda.is_available() or torch.cuda.device_count() < 4
FEW = SHARED or os.environ.get("WEFT_GPU_TESTS") == "quick"  # ranks that share a GPU take turns


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    num_ranks: int, *arguments: str, timeout_s: float = 120, script: Path = SCRIPT
) -> list[dict]:
    """The last line of every rank that ended by itself, in rank order."""
    for _ in range(3):  # another process may take the free port first
        codes, outputs = start_ranks(num_ranks, script, *arguments, timeout_s=timeout_s)
        if not any("EADDRINUSE" in err for _, err in outputs):
            break
    results = []
    for code, (out, err) in zip(codes, outputs, strict=True):
        assert code in (0, -9), err[-2000:]
        results.append(json.loads(out.strip().splitlines()[-1]))
    print(json.dumps(results))
    return results


def start_ranks(
    num_ranks: int, script: Path, *arguments: str, timeout_s: float
) -> tuple[list[int], list[tuple[str, str]]]:
    """Exit codes and (stdout, stderr) of the ranks."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "XDG_CONFIG_HOME": os.devnull,  # no fabric file of this machine
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def check(results: list[dict]) -> None:
    assert all(result["ok"] for result in results), results


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_random_cases_have_the_defined_bits(num_ranks: int) -> None:
    count, most = ("60", "200000") if FEW else ("1000", "2000000")
    check(run_ranks(num_ranks, "random", count, most, "60"))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_special_values_pass_through(num_ranks: int) -> None:
    check(run_ranks(num_ranks, "special"))


@pytest.mark.parametrize(("num_ranks", "nodes"), [(4, 2), (4, 4), (3, 3), (2, 2), (6, 3)])
def test_virtual_nodes_have_the_defined_bits(num_ranks: int, nodes: int) -> None:
    if num_ranks > 4 and not SHARED:
        pytest.skip("more ranks than GPUs")
    count, most = ("60", "100000") if FEW else ("500", "1000000")
    check(run_ranks(num_ranks, "random", count, most, "60", str(nodes)))


@pytest.mark.parametrize(("num_ranks", "nodes"), [(4, 2), (3, 3)])
def test_nodes_over_tcp_have_the_defined_bits(num_ranks: int, nodes: int) -> None:
    count, most = ("40", "100000") if SHARED else ("150", "3000000")  # in several pieces
    check(run_ranks(num_ranks, "random", count, most, "40", str(nodes), "tcp"))


def over_nvshmem(num_ranks: int) -> None:
    """Skip unless NVSHMEM is there and every rank has a GPU of its own, which it asks for."""
    reason = nvshmem.problem()
    if reason is not None:
        pytest.skip(reason)
    if torch.cuda.device_count() < num_ranks:
        pytest.skip("more ranks than GPUs")


@pytest.mark.parametrize(("num_ranks", "nodes"), [(2, 2), (4, 2), (4, 4), (3, 3)])
def test_nodes_over_nvshmem_have_the_defined_bits(num_ranks: int, nodes: int) -> None:
    over_nvshmem(num_ranks)
    count = "100" if FEW else "500"
    check(run_ranks(num_ranks, "random", count, "1000000", "40", str(nodes), "nvshmem"))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_graph_replays_over_nvshmem(num_ranks: int) -> None:
    over_nvshmem(num_ranks)
    replays = "500" if FEW else "5000"
    check(run_ranks(num_ranks, "graph", replays, "7", "20", "2", "nvshmem"))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_nvshmem_memory_comes_back(num_ranks: int) -> None:
    over_nvshmem(num_ranks)
    check(run_ranks(num_ranks, "cycles", "50", "30", "2", "nvshmem"))


def test_graph_replays_over_tcp() -> None:
    check(run_ranks(4, "graph", "50" if FEW else "1000", "7", "20", "2", "tcp"))


def test_graph_replays_with_a_late_rank() -> None:
    check(run_ranks(4, "graph", "200" if FEW else "100000", "7", "10" if FEW else "60"))


@pytest.mark.parametrize("link", [(), ("2", "tcp")])
def test_epochs_wrap(link: tuple[str, ...]) -> None:
    check(run_ranks(4, "wrap", *link))


def test_create_and_destroy_leaks_nothing() -> None:
    check(run_ranks(2 if FEW else 4, "cycles", "100" if FEW else "1000", "60"))


def test_two_communicators_and_two_streams() -> None:
    check(run_ranks(4, "streams"))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_fused_norm_equals_the_separate_operations(num_ranks: int) -> None:
    check(run_ranks(num_ranks, "fused"))


def test_operators_compile() -> None:
    check(run_ranks(2, "compile"))


def test_a_killed_rank_is_named() -> None:
    check(run_ranks(4, "lost", "2"))


@pytest.mark.parametrize("transport", ["peer", "nvshmem", "tcp"])
def test_a_killed_rank_of_another_node_is_named(transport: str) -> None:
    if transport == "nvshmem":
        over_nvshmem(4)
    check(run_ranks(4, "lost", "2", "2", transport))


def test_a_rank_that_comes_too_late() -> None:
    check(run_ranks(4, "late"))


def test_refused_tensors() -> None:
    check(run_ranks(2, "refused"))
