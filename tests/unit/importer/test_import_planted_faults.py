"""Faults planted in real traces are found and named; the untouched ones are never called wrong.

``WEFT_TRACES`` names a folder with more traces of the same kinds (whole ones, not cut short):
``WEFT_TRACES=/folder pytest tests/unit/importer/test_import_planted_faults.py``.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.errors import FileFormatError
from weft.importer.imported import ImportedTrace
from weft.importer.importing import import_traces
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.model_spec import ModelSpec

FOLDERS = [Path(__file__).parents[2] / "data" / "traces"]
FOLDERS += [Path(folder) for folder in [os.environ.get("WEFT_TRACES")] if folder]
COLLECTIVE = re.compile(
    r"shm_|all_?reduce|all_?gather|record_param|nccl|broadcast|recv|send", re.IGNORECASE
)
TINY = ModelSpec(
    name="tiny32", num_layers=32, hidden_size=256, num_heads=8, num_kv_heads=4, head_dim=32,
    intermediate_size=512, vocab_size=128256,
)  # fmt: skip
SMALL = ModelSpec(
    name="small5", num_layers=5, hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=32,
    intermediate_size=256, vocab_size=512,
)  # fmt: skip
Events = list[dict[str, Any]]


def runs() -> dict[str, list[Path]]:
    """The files of each run of vLLM, by name; ranks in order."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted(folder.glob("vllm*rank*.json.gz")):
            found[f"{folder.name}/{path.name.rsplit('_rank', 1)[0]}"].append(path)
    return dict(found)


RUNS = runs()
WHOLE = [name for name, paths in RUNS.items() if len(paths) > 1]
TENSOR = [name for name in WHOLE if "pp2" not in name]


def model_of(name: str) -> ModelSpec:
    if "h200" in name:
        return load_spec("llama-3.1-8b")
    run = name.split("/")[1]
    if (own := FOLDERS[0] / "models" / run).is_dir():
        return load_spec(str(own))
    return TINY if run in ("vllm_cpu_tp2", "vllm_cpu_pp2") or "tiny32" in run else SMALL


@functools.cache
def text_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def calls_of(events: Events) -> list[Events]:
    """The events of each collective that a step makes: on CPU one, on a GPU several layers."""
    shared = [[event] for event in events if str(event.get("name")).startswith("_C::shm_")]
    kernels = [e for e in events if e.get("cat") == "kernel" and "nccl" in str(e["name"])]
    hosts = [e for e in events if e.get("cat") in ("cpu_op", "user_annotation")]
    hosts = [e for e in hosts if COLLECTIVE.search(str(e["name"]))]
    by_id = {e["args"].get("External id"): e for e in hosts if "args" in e}
    found = []
    for kernel in kernels:
        own = by_id.get(kernel["args"].get("External id"))
        if own is not None:
            around = [
                e for e in hosts
                if e["tid"] == own["tid"] and e["ts"] <= own["ts"] and e["ts"] + e["dur"] >= own["ts"]
            ]  # fmt: skip
            found.append([kernel, own, *[e for e in around if e is not own]])
    label = re.compile(r"execute_.*\([1-9]")
    labels = [
        e["ts"] for e in events if e.get("cat") == "user_annotation" and label.match(str(e["name"]))
    ]
    calls = sorted(shared + found, key=lambda call: call[-1]["ts"])
    first, last = min(labels, default=0.0), max(labels, default=0.0)
    return [call for call in calls if first < call[-1]["ts"] < last]


def dropped(events: Events, call: Events) -> None:
    for event in call:
        events.remove(event)


def doubled(events: Events, call: Events) -> None:
    for event in call:
        args = {k: v + 10_000_000 if k == "External id" else v for k, v in event["args"].items()}
        events.append(event | {"ts": event["ts"] + event["dur"] + 0.1, "args": args})


def resized(events: Events, call: Events) -> None:
    for event in call:
        args = event["args"]
        for key in ("In msg nelems", "Out msg nelems"):
            if key in args:
                args[key] *= 2
        if "Input Dims" in args:
            args["Input Dims"] = json.loads(
                re.sub(r"(\d+)\]", r"\g<1>0]", json.dumps(args["Input Dims"]))
            )


def shifted(events: Events, call: Events) -> None:
    """Past the start of the next step that runs requests."""
    label = re.compile(r"execute_.*\([1-9]")
    later = [
        e["ts"]
        for e in events
        if label.match(str(e.get("name"))) and e.get("cat") == "user_annotation"
    ]
    starts = sorted(ts for ts in later if ts > call[-1]["ts"])
    is_early = "recv" in call[-1]["name"]  # a receive comes before the label of its step
    if is_early and len(starts) < 2:
        dropped(events, call)
        return
    start = starts[is_early]
    by = start + 0.5 - call[-1]["ts"]
    for event in call:
        event["ts"] += by


def renamed(events: Events, call: Events) -> None:
    for event in call:
        if event["name"].startswith("_C::shm_"):
            event["name"] = (
                "_C::shm_gather" if "gather" not in event["name"] else "_C::shm_allreduce"
            )
        elif event["cat"] == "kernel":
            event["name"] = "ncclDevKernel_Generic_4(x)"
            event["args"].pop("External id", None)
            event["args"].pop("Collective name", None)
        else:
            event["name"] = "aten::other"


@st.composite
def one_call(draw: st.DrawFn) -> tuple[str, int, int, Callable[[Events, Events], None]]:
    name = draw(st.sampled_from(sorted(RUNS)))
    edit = draw(st.sampled_from([dropped, doubled, resized, shifted, renamed]))
    return name, draw(st.integers(0, len(RUNS[name]) - 1)), draw(st.integers(0, 10**6)), edit


def planted(folder: Path, name: str, edits: dict[int, Callable[[Events], None]]) -> list[Path]:
    """Copies of a run's traces, some of them changed."""
    paths = []
    for position, path in enumerate(RUNS[name]):
        text = text_of(path)
        if position in edits:
            document = json.loads(text)
            edits[position](document["traceEvents"])
            text = json.dumps(document).encode()
        paths.append(folder / path.name.removesuffix(".gz"))
        paths[-1].write_bytes(text)
    return paths


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(fault=one_call())
def test_one_call_that_differs_is_found_and_named(
    fault: tuple[str, int, int, Callable[[Events, Events], None]],
) -> None:
    name, position, number, edit = fault
    is_blind: list[bool] = []

    def change(events: Events) -> None:
        calls = calls_of(events)
        call = calls[number % len(calls)]
        told = any(
            "In msg nelems" in e["args"] or any(e["args"].get("Input Dims") or []) for e in call
        )
        is_blind.append(edit is resized and not told)
        edit(events, call)

    with tempfile.TemporaryDirectory() as folder:
        paths = planted(Path(folder), name, {position: change})
        if is_blind[0]:
            return  # this trace records no size of this call: there is nothing to resize
        result = import_traces(paths, model=model_of(name))
    assert result.conformance.conforms is False, (name, edit.__name__, result.conformance.reason)
    own = list(result.traces)[position]
    named = {deviation.rank for deviation in result.conformance.deviations}
    if "logprobs" in name and edit is doubled:
        # Requests decide how often the logits of prompts are gathered: where two ranks differ
        # there, nobody can say which of them is wrong, and both are named.
        assert own in named or f"rank {own} " in result.conformance.reason
    else:
        assert own in named, (edit.__name__, result.conformance.deviations[:3])


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(TENSOR), rate=st.sampled_from([0.5, 2.0]), jump=st.booleans())
def test_a_clock_that_runs_away_or_jumps_is_refused(name: str, rate: float, jump: bool) -> None:
    def change(events: Events) -> None:
        label = re.compile(r"execute_.*\([1-9]")
        times = sorted(e["ts"] for e in events if label.match(str(e.get("name"))))
        first, middle = times[0], times[len(times) // 2]
        for event in events:
            by = (
                5e6 * (event["ts"] > middle)
                if jump
                else rate * 1e6 * (event["ts"] - first) / (times[-1] - first)
            )
            event["ts"] += by

    with tempfile.TemporaryDirectory() as folder:
        paths = planted(Path(folder), name, {1: change})
        try:
            result = import_traces(paths, model=model_of(name))
        except FileFormatError:
            return  # the one line that says so has a test of its own
    assert any("contradict" in note or "drifts" in note for note in result.notes), name


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(WHOLE), lost=st.integers(1, 2))
def test_a_trace_that_was_cut_is_named(name: str, lost: int) -> None:
    def change(events: Events) -> None:
        label = re.compile(r"execute_.*\([1-9]")
        starts = sorted(
            e["ts"]
            for e in events
            if label.match(str(e.get("name"))) and e.get("cat") == "user_annotation"
        )
        kept = [e for e in events if e.get("ts", 0) < starts[-lost]]
        events[:] = kept

    with tempfile.TemporaryDirectory() as folder:
        paths = planted(Path(folder), name, {1: change})
        result = import_traces(paths, model=model_of(name))
    assert result.conformance.conforms is not True
    assert f"{paths[1].name} lacks {lost} of the" in result.conformance.reason


@pytest.mark.parametrize(
    ("first", "second"),
    [("vllm_cpu_tp2", "vllm_cpu_tp2_mixed"), ("vllm_cpu_pp2", "vllm_cpu_pp2_mixed"),
     ("vllm_cpu_moe_tp2", "vllm_cpu_tp2"), ("vllm_cpu_moe_tp2", "vllm_cpu_logprobs")],
)  # fmt: skip
def test_ranks_of_two_runs_are_refused(first: str, second: str) -> None:
    folder = FOLDERS[0]
    paths = [folder / f"{first}_rank0.json.gz", folder / f"{second}_rank1.json.gz"]
    with pytest.raises(FileFormatError, match="different runs"):
        import_traces(paths)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_untouched_runs_are_never_called_wrong(name: str) -> None:
    result: ImportedTrace = import_traces(RUNS[name], model=model_of(name))
    whole = len(RUNS[name]) == result.run.world_size
    assert result.conformance.conforms is (True if whole else None), result.conformance.reason
    assert not result.conformance.deviations
    blind = import_traces(RUNS[name])
    assert blind.conformance.conforms is None
    assert not blind.unexplained
