"""torch's profiler around our own engine: its labels make the import know the steps.

``weft serve --profile-dir`` on GPUs has a recorder beside the profiler; a program of its own has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft.importer.importing import import_traces
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec

PROGRAM = """
import contextlib, os, sys, weft
from torch.profiler import ProfilerActivity, profile
from weft.engine.request import SamplingParams
layout = weft.Layout.parse(sys.argv[1])
with weft.LLM("embedded", layout, device="cpu", all_reduce="library", max_batch_tokens=16) as llm:
    sampling = SamplingParams(max_tokens=4, ignore_eos=True)
    llm.generate([[1, 2, 3]], sampling)
    recording = llm.engine.groups.recording() if sys.argv[3] == "recorder" else contextlib.nullcontext()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded, recording as recorder:
        llm.engine.recorder = recorder
        llm.generate([[5] * 20, [6] * 7, [7] * 30], sampling)
    recorded.export_chrome_trace(f"{sys.argv[2]}/rank{os.environ['RANK']}.json.gz")
"""


@pytest.mark.parametrize(("layout", "beside"), [("tp2", "recorder"), ("pp2", "nothing")])
def test_a_profile_of_our_own_engine_conforms(layout: str, beside: str, tmp_path: Path) -> None:
    program = tmp_path / "profiled.py"
    program.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run(
        [*launcher, "--standalone", str(program), layout, str(tmp_path), beside],
        check=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    paths = sorted(tmp_path.glob("rank*.json.gz"))
    result = import_traces(paths, model=load_spec("embedded"))
    assert result.schedule.engine == "weft"
    assert result.run.layout == Layout.parse(layout)
    assert result.conformance.conforms is True, result.conformance.reason
    assert {step.label.phase for step in result.traces[0].busy_steps} >= {"prefill", "decode"}
