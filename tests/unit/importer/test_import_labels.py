"""Step labels of every engine and version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.importer.labels import parse_label


@pytest.mark.parametrize(
    ("name", "phase", "tokens", "sequences"),
    [
        ("execute_context_1(128)_generation_0(0)", "prefill", 128, 1),
        ("execute_context_0(0)_generation_3(3)", "decode", 3, 3),
        ("execute_context_2(63)_generation_1(1)", "mixed", 64, 3),
        ("execute_context_0(0)_generation_2(8)", "decode", 8, 8),
        (
            "execute_context_3(sq128sk256sqsq1sqsk1)_generation_2(sq2sk300sqsq2sqsk600)",
            "mixed",
            130,
            5,
        ),
        ("execute_17_context_1(5)_generation_0(0)", "prefill", 5, 1),
        ("step[EXTEND bs=2 toks=14721]", "prefill", 14721, 2),
        ("step[EXTEND bs=2 toks=4096 c_sq=1 c_sk=2]", "prefill", 4096, 2),
        ("step[DECODE bs=64]", "decode", 64, 64),
        ("step[MIXED bs=9]", "mixed", None, 9),
        ("step[TARGET_VERIFY bs=9]", "decode", None, 9),
        ("[Executor] _forward_step 7: 1 ctx reqs, 128 ctx tokens, 3 gen reqs", "mixed", 131, 4),
        ("[Executor] _forward_step: 0 ctx reqs, 3 gen reqs", "decode", 3, 3),
        ("[Executor] _forward_step 9: 2 ctx reqs, 3 gen reqs", "mixed", None, 5),
    ],
)
def test_labels(name: str, phase: str, tokens: int | None, sequences: int) -> None:
    label = parse_label(name)
    assert label is not None
    assert (label.phase, label.num_tokens, label.num_sequences) == (phase, tokens, sequences)
    assert not label.is_empty


@pytest.mark.parametrize(
    "name", ["execute_context_0(0)_generation_0(0)", "step[IDLE bs=0]", "step[DECODE bs=0]"]
)
def test_empty_steps(name: str) -> None:
    label = parse_label(name)
    assert label is not None
    assert label.is_empty


@given(st.text())
def test_other_names_are_no_labels(name: str) -> None:
    assert parse_label("aten::" + name) is None
    parse_label("execute_" + name)
    parse_label("step[" + name)
