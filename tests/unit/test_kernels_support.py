"""The set-up vote, the messages of lost ranks, and the operators' schemas."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from weft.errors import UserError
from weft.kernels import (
    endpoint,
    fault,
    host_link,
    nvrtc,
    nvshmem,
    ops,
    reducer,
    residual_rms_norm,
    support,
)
from weft.kernels.selection import GroupShape
from weft.kernels.support import Place, verdict


def place(**changes: object) -> Place:
    values = {"host": "a", "device_uuid": "0", "capability": (9, 0), "problem": None, **changes}
    return Place(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("places", "options", "reason"),
    [
        ([place()] * 4, {}, None),
        ([place()], {}, "nothing to reduce"),
        ([place()] * 9, {}, "at most 8"),
        ([place(), place(problem="no CUDA device")], {}, "rank 1: no CUDA device"),
        ([place(), place(host="b")], {}, "ranks 0 to 1 are on several hosts"),
        ([place(), place(host="b")], {"nodes": 2, "transport": "tcp"}, None),
        ([place()] * 4, {"nodes": 3}, "do not make 3 equal nodes"),
        ([place()] * 2, {"transport": "pigeon"}, "unknown transport 'pigeon'"),
        ([place(), place(capability=(10, 0))], {}, "different kinds"),
    ],
)
def test_all_ranks_take_the_same_decision(
    places: list[Place], options: dict, reason: str | None
) -> None:
    answer = verdict(places, **options)
    assert (answer is None) if reason is None else (answer is not None and reason in answer)


@pytest.mark.parametrize(
    ("hosts", "cores", "nodes", "lanes"),
    [
        ("aaaa", 64, 2, 4),  # one machine plays two hosts
        ("aaaa", 16, 2, 1),
        ("aaaa", 28, 2, 3),
        ("aabb", 20, 2, 4),
        ("abcd", 8, 4, 1),
        ("ab", 2, 2, 1),
    ],
)
def test_lanes_leave_a_core_for_every_process(
    hosts: str, cores: int, nodes: int, lanes: int
) -> None:
    topology = GroupShape(num_ranks=len(hosts), nodes=nodes, transport="tcp")
    assert host_link.lanes_for(list(hosts), [cores] * len(hosts), topology) == lanes


def test_nvshmem_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvshmem, "PACKAGE", "weft.nothing")
    assert nvshmem.problem() == "NVSHMEM is not installed (pip install nvidia-nvshmem-cu13)"
    monkeypatch.setattr(nvshmem, "PACKAGE", "nothing.at.all")
    assert "not installed" in str(nvshmem.problem())


def test_a_partial_nvshmem_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvshmem, "_folder", lambda: tmp_path)
    assert "has no libnvshmem_host.so.3" in str(nvshmem.problem())


def test_records_of_nvshmem_have_its_sizes() -> None:
    assert ctypes.sizeof(nvshmem.UniqueId) == 128
    assert ctypes.sizeof(nvshmem.InitAttributes) == 144


def test_without_a_gpu_the_reason_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert support.local_problem() == "no CUDA device"


def test_a_lost_rank_is_described_on_one_line() -> None:
    record = fault.FaultRecord(raised=1, missing=0b1010, step=2, epoch=7)
    text = fault.describe(record, rank=3, timeout_s=30)
    assert "rank 1, 3 (this rank, too late) did not come within 30 s" in text
    assert "step reduce-scatter, epoch 7" in text


def structure_fields(name: str) -> list[str]:
    """Field names of a struct in the CUDA sources."""
    text = "".join(path.read_text() for path in sorted(nvrtc.SOURCES.glob("*.cu*")))
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None
    code = re.sub(r"//.*", "", body[1])
    return re.findall(r"(\w+)(?:\[\w+\])?;", code)


@pytest.mark.parametrize(
    ("name", "mirror", "size"),
    [
        ("Comm", endpoint.CommRecord, 96),
        ("Fault", fault.FaultRecord, 16),
        ("Rows", residual_rms_norm.RowsRecord, 56),
        ("HostLinkRecord", host_link.HostLinkRecord, 64),
        ("ShmemRecord", nvshmem.ShmemRecord, 112),
    ],
)
def test_records_mirror_the_cuda_sources(
    name: str, mirror: type[ctypes.Structure], size: int
) -> None:
    assert structure_fields(name) == [field[0] for field in mirror._fields_]
    assert ctypes.sizeof(mirror) == size


def test_header_offsets_mirror_the_cuda_sources() -> None:
    assert structure_fields("Header") == ["poison", "reported", "unused", "entered", "epoch"]
    assert endpoint.ENTERED_OFFSET == 4 * 32
    assert endpoint.EPOCH_OFFSET == 4 * 64


def test_operators_say_what_they_change() -> None:
    schemas = {name: getattr(torch.ops.weft, name).default._schema for name in OPERATORS}
    changed = {
        name: [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        for name, schema in schemas.items()
    }
    assert changed == OPERATORS
    assert ops.LIBRARY is not None


OPERATORS = {
    "all_reduce_": ["tensor"],
    "all_reduce": [],
    "all_reduce_residual_rms_norm": ["residual"],
}


def test_operators_under_fake_tensors_have_shapes() -> None:
    with FakeTensorMode():
        x = torch.empty(3, 8, dtype=torch.bfloat16)
        assert torch.ops.weft.all_reduce(x, 1, "auto").shape == (3, 8)
        assert torch.ops.weft.all_reduce_(x, 1, "auto") is None
        weight = torch.empty(8, dtype=torch.bfloat16)
        normed = torch.ops.weft.all_reduce_residual_rms_norm(x, x, weight, 1e-5, 1)
        assert (normed.shape, normed.dtype) == ((3, 8), torch.bfloat16)


def test_a_closed_communicator_is_named() -> None:
    with pytest.raises(UserError, match="communicator 12345 is closed"):
        reducer.find(12345)


def test_norm_arguments_that_the_kernels_do_not_take() -> None:
    device, row = torch.device("cpu"), torch.zeros(2, 64, dtype=torch.bfloat16)
    weight = torch.zeros(64, dtype=torch.bfloat16)
    assert residual_rms_norm.takes(row, row, weight, row, row, device)
    for bad in (
        (row[:, :7], row, weight, row, row),
        (row, row[:1], weight, row, row),
        (row, row, weight, row, row[:1]),
        (row, row, weight.float(), row, row),
        (row, row.t().contiguous().t(), weight, row, row),
        (row.double(), row.double(), weight.double(), row.double(), row.double()),
    ):
        assert not residual_rms_norm.takes(*bad, device)
    assert not residual_rms_norm.takes(row, row, weight, row, row, torch.device("cuda:0"))


def test_norm_shapes_that_nobody_takes() -> None:
    row, weight = torch.zeros(2, 64), torch.zeros(64)
    for bad, message in (
        ((row, row[:1], weight, None, None), r"residual is torch\.float32 \[1, 64\]"),
        ((row, row, weight, None, row[:1]), r"residual_out is"),
        ((row, row, weight.double(), None, None), r"weight is torch\.float64"),
        ((row, row, weight[:3], row, None), r"weight is torch\.float32 \[3\]"),
    ):
        with pytest.raises(UserError, match=message):
            reducer.check_norm_shapes(*bad)


@pytest.mark.parametrize("vectors", [1, 8, 33, 360, 512, 1024, 1500, 2048])
@pytest.mark.parametrize("num_rows", [1, 16, 100, 4000])
def test_norm_shapes_cover_the_row(vectors: int, num_rows: int) -> None:
    cluster, threads = residual_rms_norm.shape(vectors, num_rows)
    assert cluster in {1, 2, 4, 8}
    assert cluster * threads >= vectors
    assert threads <= 1024
    assert threads % 32 == 0
    assert cluster * threads // 32 <= 64
