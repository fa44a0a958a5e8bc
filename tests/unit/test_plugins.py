"""The plugins without an engine: the switch, the pass over a graph, the object for SGLang."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from weft.cli import doctor
from weft.plugins import reducer, sglang, switch, vllm_fusion

VERSIONS = st.tuples(st.integers(0, 3), st.integers(0, 60))


@given(
    version=VERSIONS, oldest=VERSIONS, newest=VERSIONS, patch=st.sampled_from(["", ".1", ".2rc1"])
)
def test_one_means_versions_that_were_tried(version, oldest, newest, patch):
    text = f"{version[0]}.{version[1]}{patch}"
    reason = switch.refusal("1", "vLLM", text, oldest, newest)
    assert (reason is None) == (oldest <= version <= newest)
    if reason is not None:
        assert text in reason
        assert "WEFT_ALL_REDUCE=insist" in reason
    assert switch.refusal("insist", "vLLM", text, oldest, newest) is None


@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_other_values_are_named(value):
    reason = switch.refusal(value, "vLLM", "0.30.0", (0, 25), (0, 33))
    assert reason is not None
    assert f"WEFT_ALL_REDUCE={value}" in reason


def test_a_version_that_cannot_be_read():
    assert "no version" in (switch.refusal("1", "vLLM", None, (0, 25), (0, 33)) or "")
    assert switch.refusal("1", "vLLM", "dev", (0, 25), (0, 33)) is not None


@pytest.mark.parametrize("value", [None, "", "0"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_off_touches_nothing(engine, value):
    code = (
        f"import sys; from weft.plugins import entry; entry.{engine}(); "
        "sys.exit(any(name.split('.')[0] in ('vllm', 'sglang', 'torch') for name in sys.modules))"
    )
    environment = {} if value is None else {switch.VARIABLE: value}
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=False, env=environment, timeout=60
        ).returncode
        == 0
    )


def test_a_part_that_an_engine_lacks_is_one_line(caplog):
    def install():
        raise ImportError("no module named that")

    switch.guarded("vLLM's CudaCommunicator", install)
    assert "stays the engine's own (ImportError: no module named that)" in caplog.text


class TwoAlike:
    """A reducer of two ranks that hold the same; ``limit`` is the most bytes it takes."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.limit = limit

    def takes(self, tensor):
        return tensor.nbytes <= self.limit

    def all_reduce(self, tensor):
        return 2 * tensor

    def fused(self, partial, residual, weight, epsilon):
        total = 2 * partial + residual
        return norm(total, weight, epsilon), total


def norm(total, weight, epsilon):
    return torch.nn.functional.rms_norm(total, total.shape[-1:], weight, epsilon)


@pytest.fixture(scope="module", autouse=True)
def vllm_ops():
    """vLLM's two operators, for a group of two equal ranks."""
    with torch.library._scoped_library("vllm", "FRAGMENT") as ops:
        ops.define("all_reduce(Tensor tensor, str group_name) -> Tensor")
        ops.impl("all_reduce", lambda tensor, group_name: 2 * tensor, "CompositeExplicitAutograd")
        with torch.library._scoped_library("vllm_ir", "FRAGMENT") as ir:
            ir.define(
                "fused_add_rms_norm(Tensor x, Tensor x_residual, Tensor? weight, float epsilon, "
                "int? variance_size=None) -> (Tensor, Tensor)"
            )
            ir.impl("fused_add_rms_norm", add_and_norm, "CompositeExplicitAutograd")
            yield


def add_and_norm(x, x_residual, weight, epsilon, variance_size=None):
    total = x + x_residual
    return norm(total, weight, epsilon), total


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setitem(reducer._reducers, "tp:0", TwoAlike())
    return "tp:0"


def block(reads_sum_twice=False, variance_size=None, group="tp:0"):
    def forward(x, residual, weight, matrix):
        for by_name in ({"epsilon": 1e-5}, {"epsilon": 1e-6, "weight": weight}, {}):
            reduced = torch.ops.vllm.all_reduce.default(x @ matrix, group_name=group)
            by_position = () if "weight" in by_name else (weight,)
            by_position += () if by_name else (1e-5, variance_size)
            if variance_size is not None and by_name:
                by_name["variance_size"] = variance_size
            x, residual = torch.ops.vllm_ir.fused_add_rms_norm.default(
                reduced, residual, *by_position, **by_name
            )
            if reads_sum_twice:
                x = x + reduced
        return x, residual

    return forward


def traced(forward, dtype=torch.float32):
    """The graph with values noted at its nodes, as the compiler's passes see it."""
    values = [
        torch.randn(5, 16),
        torch.randn(5, 16),
        torch.randn(16, dtype=dtype),
        torch.randn(16, 16),
    ]
    module = fx.symbolic_trace(forward)
    interpreter = fx.Interpreter(module)
    plain = interpreter.run_node

    def noting(node):
        node.meta["val"] = plain(node)
        return node.meta["val"]

    interpreter.run_node = noting
    interpreter.run(*values)
    return module, values


def count(module, target):
    return sum(node.target is target for node in module.graph.nodes)


def test_an_all_reduce_before_a_norm_is_fused(group):
    module, values = traced(block())
    expected = module(*values)
    assert vllm_fusion.fuse(module.graph) == 3
    module.graph.lint()
    module.recompile()
    assert count(module, torch.ops.vllm.all_reduce.default) == 0
    for one, other in zip(module(*values), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("forward", "dtype"),
    [
        (block(reads_sum_twice=True), torch.float32),
        (block(variance_size=16), torch.float32),
        (block(group="tp:9"), torch.float32),
        (block(), torch.float64),
    ],
    ids=[
        "the sum is read elsewhere",
        "a part of the row",
        "another group",
        "another type of weight",
    ],
)
def test_what_weft_cannot_take_stays(group, forward, dtype):
    if dtype == torch.float64:
        module, _ = traced(block())
        for node in module.graph.nodes:
            if node.name == "weight":
                node.meta["val"] = node.meta["val"].to(dtype)
    else:
        module, _ = traced(forward, dtype)
    assert vllm_fusion.fuse(module.graph) == 0


class OwnCommunicator:
    def __init__(self, group, device):
        self.disabled, self.calls, self.full_nvlink = False, 0, "own"

    def should_custom_ar(self, inp):
        return inp.nbytes <= 64

    def custom_all_reduce(self, input):  # noqa: A002
        self.calls += 1
        return 2 * input


@settings(deadline=None)
@given(rows=st.integers(1, 100))
def test_sglang_asks_weft_first(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sglang, "reducer_for", lambda *_: TwoAlike(limit=1024))
        made = sglang.weft_in_front(lambda **_: OwnCommunicator, group=None, device="cpu")(
            None, "cpu"
        )
        tensor = torch.randn(rows, 8)
        assert made.should_custom_ar(tensor) == (tensor.nbytes <= 1024)
        torch.testing.assert_close(made.custom_all_reduce(tensor), 2 * tensor)
        assert made.calls == (tensor.nbytes > 1024)
        assert made.full_nvlink == "own"


def test_sglang_goes_on_without_weft(monkeypatch):
    monkeypatch.setattr(sglang, "reducer_for", lambda *_: None)
    made = sglang.weft_in_front(lambda **_: OwnCommunicator, group=None, device="cpu")(None, "cpu")
    made.disabled = True
    assert made.disabled
    made.disabled = False
    assert made.should_custom_ar(torch.zeros(4))
    assert not made.should_custom_ar(torch.zeros(400))


@pytest.mark.parametrize(
    ("version", "choice", "state", "said"),
    [
        (None, "1", "no", "not installed"),
        ("0.30.1", "", "off", "WEFT_ALL_REDUCE=1 turns it on"),
        ("0.30.1", "1", "on", "0.30.1"),
        ("9.1.0", "1", "off", "WEFT_ALL_REDUCE=insist"),
    ],
)
def test_doctor_says_how_the_plugin_stands(monkeypatch, version, choice, state, said):
    monkeypatch.setenv(switch.VARIABLE, choice)
    monkeypatch.setattr(switch, "installed", lambda packages: version)
    rows = {row["name"]: row for row in doctor._plugins()}
    assert rows["vLLM"]["state"] == state
    assert said in rows["vLLM"]["detail"]
