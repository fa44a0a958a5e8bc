"""What ``weft calibrate --device cuda`` wrote, read for algorithm="auto" on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from weft.allreduce.selection import BACKEND as LIBRARY
from weft.allreduce.selection import select
from weft.bench.calibration import gpu_groups
from weft.errors import FileFormatError
from weft.fabric import load
from weft.fabric.fabric import Fabric, MeasuredTable
from weft.fabric.files import save
from weft.fabric.fingerprint import fingerprint
from weft.fabric.local import default_path, device_fabric
from weft.kernels.selection import GroupShape, capacity, choose

SIZES = tuple(1 << power for power in range(10, 27))


def table(algorithm: str, call_us: float, us_per_mib: float, **shape: object) -> MeasuredTable:
    values = {"ranks": 4, "dtype": "bfloat16", **shape}
    times = tuple(call_us + us_per_mib * size / 2**20 for size in SIZES)
    return MeasuredTable(
        algorithm=algorithm, bytes=SIZES, latency_us=times, source="test", **values
    )


def fabric(*tables: MeasuredTable, **changes: object) -> Fabric:
    values = {"fingerprint": fingerprint(), "tables": tables, **changes}
    return replace(load("h200-nvlink"), **values)  # type: ignore[arg-type]


ONE_SHOT = table("one_shot", 2.0, 20.0)
TWO_SHOT = table("two_shot", 4.0, 6.0)
BACKEND = table("backend", 9.0, 5.0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("WEFT_FABRIC", raising=False)
    default_path("cuda").parent.mkdir()
    return tmp_path


def picker(measured: Fabric | None, topology: GroupShape) -> Callable[[int], str]:
    """How a communicator of the topology picks for bfloat16."""
    return select(
        measured,
        ranks=topology.num_ranks,
        nodes=topology.nodes,
        dtype="bfloat16",
        available=(LIBRARY, *topology.algorithms),
        default=topology.table(),
    ).pick


def test_the_library_alone_is_no_measured_choice() -> None:
    topology = GroupShape(num_ranks=4)
    assert picker(fabric(BACKEND), topology)(8 << 10) == "one_shot"


def test_the_fastest_measured_algorithm_is_chosen() -> None:
    topology = GroupShape(num_ranks=4)
    pick = picker(fabric(ONE_SHOT, TWO_SHOT, BACKEND), topology)
    room = capacity(topology, 64 << 20)
    chosen = {size: choose(topology, size, "auto", room, pick) for size in SIZES}
    names = {size: "backend" if v is None else v.algorithm for size, v in chosen.items()}
    assert names[8 << 10] == "one_shot"
    assert names[1 << 20] == "two_shot"
    assert names[16 << 20] == "backend"
    shape = choose(topology, 1 << 20, "two_shot", room)
    assert chosen[1 << 20] == shape, "the built-in table gives the launch shape"


def test_a_choice_that_does_not_fit_the_mailbox_goes_to_the_backend() -> None:
    topology = GroupShape(num_ranks=4)
    pick = picker(fabric(ONE_SHOT), topology)
    small = capacity(topology, 1 << 10)
    assert choose(topology, 64 << 20, "auto", small, pick) is None


@pytest.mark.parametrize(
    "topology",
    [GroupShape(num_ranks=2), GroupShape(num_ranks=4, nodes=2, transport="tcp")],
)
def test_groups_that_were_not_measured_use_the_built_in_table(topology: GroupShape) -> None:
    room = capacity(topology, 64 << 20)
    for measured in (fabric(ONE_SHOT, BACKEND), None):
        pick = picker(measured, topology)
        for size in (*SIZES, 3, 5000, 3 << 20, 100 << 20):
            built_in = choose(topology, size, "auto", room)
            assert choose(topology, size, "auto", room, pick) == built_in


def test_this_machines_file_is_read(home: Path) -> None:
    assert device_fabric() is None
    save(fabric(ONE_SHOT), default_path("cuda"))
    assert device_fabric() == fabric(ONE_SHOT)


@pytest.mark.parametrize(
    "changes", [{"fingerprint": {"cpu": "another"}}, {"fingerprint": None}, {"uses_nccl": False}]
)
def test_a_file_of_another_machine_or_of_cpus_is_left_alone(
    changes: dict[str, object], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(fabric(ONE_SHOT, **changes), default_path("cuda"))
    assert device_fabric() is None
    monkeypatch.setenv("WEFT_FABRIC", str(default_path("cuda")))
    assert device_fabric() is None


def test_a_named_file_is_read_and_a_damaged_one_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "mine.json"
    monkeypatch.setenv("WEFT_FABRIC", str(path))
    save(fabric(TWO_SHOT), path)
    assert device_fabric() == fabric(TWO_SHOT)
    path.write_text("{")
    with pytest.raises(FileFormatError, match=r"mine\.json"):
        device_fabric()


@pytest.mark.parametrize(
    ("gpus", "groups"), [(2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (16, [2, 4, 8])]
)
def test_groups_of_a_calibration(gpus: int, groups: list[int]) -> None:
    assert [group.ranks for group in gpu_groups(gpus)] == groups
