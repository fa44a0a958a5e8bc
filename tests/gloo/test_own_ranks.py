"""A script's LLM starts ranks of its own and ends them, whatever happens to any of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import weft
from weft.errors import LayoutError, LostRankError, UserError, WorkloadError

LONG = weft.SamplingParams(max_tokens=4000, ignore_eos=True)
SHORT = weft.SamplingParams(max_tokens=4)


def own(of: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(of).children(recursive=True)
    return [one for one in children if "weft.launch.own_ranks" in one.cmdline()]


def processes(of: int | None = None, count: int = 3) -> list[psutil.Process]:
    """The launcher, then its ranks in order."""
    for _ in range(600):
        found = own(of)
        if len(found) == count:
            return sorted(found, key=lambda one: int(one.environ().get("RANK", -1)))
        time.sleep(0.1)
    raise AssertionError(f"{len(found)} processes")


def check_gone(found: list[psutil.Process], within_s: float = 10) -> None:
    _, alive = psutil.wait_procs(found, timeout=within_s)
    for one in alive:
        one.kill()
    assert not alive


def test_a_script_gets_what_one_rank_gives_until_a_rank_is_killed():
    prompts = ["Hello", [5, 6, 7]]
    told: list[int] = []
    with weft.LLM("embedded", tp=2, device="cpu") as llm:
        found = processes()
        with pytest.raises(WorkloadError, match="outside the vocabulary"):
            llm.generate([[10**9]])
        assert llm.tokenizer is not None
        done = llm.generate(prompts, SHORT, on_step=lambda requests: told.append(len(requests)))
        with pytest.raises(UserError, match="`groups`: is in the ranks"):
            llm.groups  # noqa: B018
        started_s = time.monotonic()
        with pytest.raises(LostRankError, match="rank 1 was killed by SIGKILL"):
            llm.generate([[5] * 8], LONG, on_step=lambda _: found[2].kill())
        assert time.monotonic() - started_s < 20
        with pytest.raises(weft.WeftError, match="the ranks have ended"):
            llm.generate(prompts, SHORT)
    check_gone(found)
    with weft.LLM("embedded", device="cpu") as one:
        assert done == one.generate(prompts, SHORT)
    assert sum(told) == 8


@pytest.mark.faults
@pytest.mark.parametrize(
    ("victim", "how", "cause"),
    [(0, signal.SIGKILL, "launcher"), (2, signal.SIGSTOP, "rank 1 does not answer")],
)
def test_a_killed_launcher_or_a_frozen_rank_ends_the_call_and_all_ranks(victim, how, cause):
    llm = weft.LLM("embedded", pp=2)
    found = processes()
    with pytest.raises(LostRankError, match=cause):
        llm.generate([[5] * 8], LONG, on_step=lambda _: found[victim].send_signal(how))
    check_gone(found)


@pytest.mark.faults
def test_an_exception_inside_ends_the_ranks_at_once():
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with weft.LLM("embedded", tp=2) as llm:
        found = processes()
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5] * 8], LONG, on_step=stop)
    check_gone(found)


def test_what_cannot_be_is_refused_before_anything_starts():
    for asked in (
        {"tp": 3},
        {"tp": 2, "layout": weft.Layout(tp=2)},
        {"layout": weft.Layout(tp=2, nodes=2)},
    ):
        with pytest.raises(LayoutError, match=r"^`(tp|nodes)` [23]"):
            weft.LLM("embedded", **asked)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^`cache_token`: .* did you mean `cache_tokens`"):
        weft.LLM("embedded", tp=2, cache_token=9)  # type: ignore[call-arg]
    assert not own()


SCRIPT = """
import weft
llm = weft.LLM("embedded", tp=2)
print(llm.generate(["Hello"], weft.SamplingParams(max_tokens=2))[0].token_ids, flush=True)
"""


@pytest.mark.parametrize(
    "ending", [pytest.param("", marks=pytest.mark.faults), "input()"], ids=["ends", "killed"]
)
def test_a_script_without_guard_ends_its_ranks_even_when_it_is_killed(ending, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + ending)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("("), process.communicate()
    if ending:
        found = processes(process.pid)
        process.send_signal(signal.SIGKILL)
        check_gone(found)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (-9 if ending else 0, "")


@pytest.mark.faults
def test_a_rank_that_cannot_start_says_why(tmp_path):
    from checkpoints import make_checkpoint

    weights = make_checkpoint(tmp_path / "model", "llama") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(weft.FileFormatError, match=r"model\.safetensors"):
        weft.LLM(str(weights.parent), tp=2)
    assert not own()
