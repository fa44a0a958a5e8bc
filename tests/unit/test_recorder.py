"""The recorder: fused calls, and calls inside captured graphs."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from weft.comm.communicator import Communicator
from weft.comm.recorder import Recorder, RecordingTransport
from weft.engine import graphs
from weft.kernels.reducer import Reducer
from weft.tracing.recorded import rows_from_calls


class Doubling(Reducer):
    """A group of two equal ranks, without a process group."""

    def __init__(self) -> None:
        pass

    def all_reduce(self, tensor, out=None, **_):
        return torch.mul(tensor, 2, out=tensor if out is None else out)


class Groups:
    """What graphs need of a run's groups."""

    def __init__(self) -> None:
        self.tp = Communicator(kind="tp", ranks=(0, 1), rank=0, transport=Doubling())
        self.recorder = None

    @contextmanager
    def recording(self):
        recorder, plain = Recorder(), self.tp.transport
        self.tp.transport = RecordingTransport(plain, recorder, "tp", 2)
        yield recorder
        self.tp.transport = plain

    def replayed(self, calls):
        if self.recorder is not None:
            self.recorder.replayed(calls)


def test_a_fused_call_is_the_composition_and_one_row():
    groups = Groups()
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    total = residual + 2 * x
    with groups.recording() as recorder, recorder.step("decode", 3):
        normed = groups.tp.all_reduce_residual_rms_norm(x, residual, weight, 1e-6, "layer")
        groups.tp.all_reduce(torch.randn(3, 8), "embedding")
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(normed, F.rms_norm(total, (8,), weight, 1e-6))
    (row,) = rows_from_calls(recorder.calls, 0, timed=True)
    assert (row.op, row.count, row.fused, row.input_shape) == (
        "all_reduce", 2, "residual_rms_norm", (3, 8),
    )  # fmt: skip
    assert row.to_dict()["fused"] == "residual_rms_norm"
    assert [call.fused for call in recorder.calls] == ["residual_rms_norm", None]


class Graph:
    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@contextmanager
def nothing(*_, **__):
    yield


def test_calls_of_a_graph_are_noted_at_the_capture_and_counted_at_replay(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(
        graphs.torch,
        "cuda",
        SimpleNamespace(
            graph_pool_handle=lambda: None, Stream=lambda: stream, current_stream=lambda: stream,
            stream=nothing, synchronize=lambda: None, CUDAGraph=Graph, graph=nothing,
        ),
    )  # fmt: skip
    groups = Groups()

    def work(bucket):
        return groups.tp.all_reduce(torch.ones(bucket, 4), "layer"), None

    captured = graphs.StepGraphs(work, [1, 8], groups)
    captured.replay(8)
    groups.recorder = recorder = Recorder()
    with recorder.step("decode", 5):
        captured.replay(8)
        captured.replay(8)
    with recorder.step("decode", 1):
        captured.replay(1)
    rows = rows_from_calls(recorder.calls, 0, timed=True)
    assert [(row.phase, row.input_shape, row.count) for row in rows] == [
        ("decode", (8, 4), 2),
        ("decode", (1, 4), 1),
    ]
    assert all(row.duration_us is None for row in rows), "a replay is launched as a whole"
    assert [call.step for call in recorder.calls] == [0, 0, 1]
