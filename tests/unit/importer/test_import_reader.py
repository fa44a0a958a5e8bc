"""The reader: every way a file can be written, and every way it can be broken."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import FileFormatError
from weft.importer import reader as reader_module
from weft.importer.collect import read_rank
from weft.importer.reader import TraceReader

TRACES = Path(__file__).parents[2] / "data" / "traces"
TEXT = st.text(max_size=20) | st.sampled_from(['}, {"ph": "X"', '\\"}],"x":[', "\u2028", "]}"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"ph": st.sampled_from("XMsf"), "cat": TEXT, "name": TEXT, "ts": st.floats(0, 1e15)},
        optional={
            "dur": st.floats(0, 1e6),
            "pid": JSON,
            "tid": JSON,
            "args": st.dictionaries(TEXT, JSON, max_size=4),
        },
    ),
    max_size=12,
)


def read(path: Path) -> tuple[list[Any], TraceReader]:
    reader = TraceReader(path)
    return [event for batch in reader.batches() for event in batch], reader


def read_bytes(content: bytes) -> tuple[list[Any], TraceReader]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        path.write_bytes(content)
        return read(path)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut often, so that small files are cut too."""
    monkeypatch.setattr(reader_module, "BATCH_BYTES", 256)
    monkeypatch.setattr("weft.importer.inflate.PIECE_BYTES", 100)


@settings(deadline=None, max_examples=80)
@given(
    events=EVENTS,
    metadata=st.dictionaries(TEXT, JSON, max_size=3),
    indent=st.sampled_from([None, 1, 2]),
    order=st.sampled_from(["before", "after", "list"]),
    pack=st.booleans(),
)
def test_every_event_is_read_however_the_file_is_written(
    events: list[dict[str, Any]],
    metadata: dict[str, Any],
    indent: int | None,
    order: str,
    pack: bool,
) -> None:
    metadata.pop("traceEvents", None)
    document: Any = events
    if order == "before":
        document = metadata | {"traceEvents": events}
    elif order == "after":
        document = {"traceEvents": events} | metadata
    content = json.dumps(document, indent=indent).encode()
    found, reader = read_bytes(gzip.compress(content) if pack else content)
    assert [(e.name, e.cat, e.ts) for e in found] == [
        (e["name"], e["cat"], e["ts"]) for e in events
    ]
    assert not reader.truncated
    assert not reader.num_damaged
    if order != "list":
        assert reader.metadata == json.loads(json.dumps(metadata))


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=2000))
def test_any_bytes_are_a_trace_or_a_clear_error(content: bytes) -> None:
    with contextlib.suppress(FileFormatError):
        read_bytes(content)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_in_a_real_trace_loses_little_and_is_counted(data: st.DataObject) -> None:
    whole = gzip.decompress((TRACES / "vllm_cpu_tp2pp2_rank0.json.gz").read_bytes())
    content = bytearray(whole)
    start = whole.index(b'"traceEvents"') + 40
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
    found, reader = read_bytes(bytes(content))
    total = len(json.loads(whole)["traceEvents"])
    assert total - 9 <= len(found) <= total + 3
    if len(found) < total:
        assert reader.num_damaged or reader.truncated


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_that_breaks_off_gives_what_it_has(tmp_path: Path, pack: bool, share: float) -> None:
    packed = (TRACES / "vllm_h200_tp2_rank1.json.gz").read_bytes()
    content = packed if pack else gzip.decompress(packed)
    path = tmp_path / "trace.json"
    path.write_bytes(content[: int(len(content) * share)])
    found, reader = read(path)
    assert reader.truncated
    assert not reader.num_damaged
    assert len(found) > 4795 * share * 0.5
    assert read_rank(path).truncated


def test_corrupt_gzip_gives_the_part_before_the_damage(tmp_path: Path) -> None:
    content = bytearray((TRACES / "vllm_h200_tp2_rank1.json.gz").read_bytes())
    content[50_000:50_100] = bytes(random.Random(1).randbytes(100))
    path = tmp_path / "trace.json.gz"
    path.write_bytes(content)
    found, reader = read(path)
    assert reader.truncated
    assert found


def test_gzip_members_one_after_another_and_padding(tmp_path: Path) -> None:
    text = json.dumps({"traceEvents": [{"ph": "X", "name": "a", "ts": 1}] * 100}).encode()
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(text[:700]) + gzip.compress(text[700:]) + bytes(64))
    found, reader = read(path)
    assert len(found) == 100
    assert not reader.truncated


def test_not_a_number_and_raw_control_characters(tmp_path: Path) -> None:
    """Profilers have written both; JSON allows neither."""
    good = '{"ph": "X", "name": "ok", "ts": 1, "args": {"a": 1}}'
    odd = '{"ph": "X", "name": "odd\t", "ts": 2, "dur": "3.5", "args": {"b": NaN, "c": Infinity}}'
    path = tmp_path / "trace.json"
    path.write_text('{"traceEvents": [' + ", ".join([good, odd] * 20) + "]}", encoding="utf-8")
    found, reader = read(path)
    assert [event.name for event in found] == ["ok", "odd\t"] * 20
    assert found[1].dur == 3.5
    assert not reader.num_damaged


def test_lists_of_objects_among_arguments(tmp_path: Path) -> None:
    nested = {
        "ph": "X",
        "name": "n",
        "ts": 1,
        "args": {"list": [{"name": str(i)} for i in range(5)]},
    }
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": [nested] * 200}), encoding="utf-8")
    found, reader = read(path)
    assert [event.name for event in found] == ["n"] * 200
    assert not reader.num_damaged


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"   ",
        b"hello",
        b"{}",
        b'{"a": [1, 2]}',
        b'{"traceEvents": 3}',
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x00garbage",
        b"\x00" * 1000,
        gzip.compress(b"not json", mtime=0),
    ],
)
def test_files_that_are_no_traces(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="not a PyTorch profiler trace"):
        read(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(FileFormatError, match="cannot read it"):
            read(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A 200 MB trace (3 MB packed) is read in a process that may hold little of it."""
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 1.0, "dur": 1.0}
    event |= {"pid": 1, "tid": 1, "args": {"External id": 1, "padding": "x" * 900}}
    line = json.dumps(event).encode() + b",\n"
    path = tmp_path / "large.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"distributedInfo": {"rank": 0, "world_size": 2}, "traceEvents": [\n')
        for _ in range(200):
            file.write(line * 1000)
        file.write(json.dumps(event).encode() + b"]}")
    code = (
        "import re, sys; from pathlib import Path; "
        "from weft.importer.collect import read_rank; "
        "trace = read_rank(Path(sys.argv[1])); "
        "peak = re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]; "
        "print(trace.num_events, int(peak) // 1024, 'torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, timeout=120
    ).stdout.split()
    assert output[0] == b"200001"
    assert int(output[1]) < 150
    assert output[2] == b"False"
