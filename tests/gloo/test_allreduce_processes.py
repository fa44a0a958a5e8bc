"""Weft's all-reduce between real processes: results, groups, bad calls, lost ranks, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from weft.allreduce.algorithms import PROGRAMS
from weft.fabric import MeasuredTable
from weft.fabric.builtin import BUILTIN_FABRICS
from weft.fabric.files import save
from weft.fabric.fingerprint import fingerprint

WORKER = Path(__file__).with_name("allreduce_worker.py")


def run(scenarios, size, tmp_path, missing=(), **environment):
    """Start ``size`` ranks of the scenarios; returns what each of them reported."""
    arguments = [str(size), str(tmp_path / "store"), str(tmp_path / "out")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), scenarios, str(rank), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = []
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank}:\n{errors[rank]}"
    return [
        json.loads(Path(f"{arguments[2]}.{rank}").read_text())
        for rank in range(size)
        if rank not in missing
    ]


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run(
        "correct,exchanged,groups,bad_calls,some_ranks,public", 4, tmp_path_factory.mktemp("four")
    )


def test_every_algorithm_is_exact_on_every_shape_of_group(four_ranks):
    for result in four_ranks:
        assert result["correct"]["calls"] == 3 * len(PROGRAMS) * 8


def test_every_algorithm_is_exact_where_nothing_is_a_power_of_two(tmp_path):
    for result in run("correct", 6, tmp_path):
        assert result["correct"]["calls"] == 4 * len(PROGRAMS) * 8


def test_rows_reach_their_experts_and_come_back_summed(four_ranks):
    for result in four_ranks:
        assert result["exchanged"]["routings"] == 36


def test_groups_do_not_mix_and_outsiders_are_told(four_ranks):
    for result in four_ranks:
        name, text, exit_code = result["groups"]["outsider"]
        assert (name, exit_code) == ("UserError", 2)
        assert "not a rank of the group" in text


def test_bad_calls_fail_on_every_rank_and_the_group_works_on(four_ranks):
    results = [result["bad_calls"] for result in four_ranks]
    assert len(results[0]) == 1 + 2 * 12
    for key, (name, text, exit_code) in results[0].items():
        assert all(result[key] == results[0][key] for result in results), key
        if "unknown" in key:
            assert (name, exit_code) == ("UnknownAlgorithmError", 2)
            assert "one_shot" in text
        elif key == "nodes":
            assert (name, exit_code) == ("UserError", 2)
            assert text == "`nodes` 3: does not divide the 4 ranks of the group"
        elif key.endswith(" type"):
            assert (name, exit_code) == ("EnvironmentUnavailable", 3)
        else:
            assert (name, exit_code) == ("MismatchError", 2), (key, text)
    assert "16 and 17 elements" in results[0]["1 shape ring"][1]
    assert "bfloat16 and float16" in results[0]["2 dtype one_shot"][1]
    assert "algorithms ring and two_shot" in results[0]["1 algorithm"][1]


BAD_PUBLIC_CALLS = {
    "unknown": ("UnknownAlgorithmError", "algorithm 'fastest': unknown; choose one of auto"),
    "elsewhere": ("EnvironmentUnavailable", "algorithm hierarchical_host: not usable here"),
    "device": ("UserError", "all_reduce: the tensor is on meta, the group's are on cpu"),
    "out": ("UserError", "out is torch.float32 [4] on cpu, not like the tensor"),
    "norm": ("UserError", "residual is torch.float32 [1, 40], expected torch.float32 [6, 40]"),
    "one device": ("UserError", "all_reduce: the ranks of the group passed tensors on cpu and"),
    "closed": ("UserError", "all_reduce: the process group is closed"),
    "closed reducer": ("UserError", "all_reduce: this group's all-reduce is closed"),
}


@pytest.mark.parametrize("case", BAD_PUBLIC_CALLS)
def test_a_bad_public_call_is_one_error_on_every_rank(case, four_ranks):
    name, text = BAD_PUBLIC_CALLS[case]
    for result in four_ranks:
        found = result["public"][case]
        assert found[0] == name
        assert found[1].startswith(text)


def test_a_rank_alone_with_another_device_is_told_at_once(four_ranks):
    name, text, _ = four_ranks[1]["public"]["device alone"]
    assert name == "UserError"
    assert text == "all_reduce: the tensor is on meta, the group's are on cpu"


def test_a_group_that_some_ranks_do_not_open_fails_on_all(four_ranks):
    for rank, result in enumerate(four_ranks):
        name, text, exit_code = result["some_ranks"]["error"]
        assert (name, exit_code) == ("CommunicationError", 3)
        assert "waited 2 s for rank 1 in vain" in text
        assert result["some_ranks"]["seconds"] < 30, rank


def test_two_threads_in_one_group_end_with_errors_on_every_rank(tmp_path):
    results = [result["threads"] for result in run("threads", 2, tmp_path)]
    assert [result["alive"] for result in results] == [0, 0]
    errors = [error for result in results for error in result["errors"]]
    assert len(errors) == 4
    assert {name for name, *_ in errors} <= {"CommunicationError", "LostRankError"}
    assert any("two threads use one group at once" in text for _, text, _ in errors)


def test_compiled_calls_equal_eager_ones(tmp_path):
    run("compiled", 2, tmp_path)


def test_a_lost_rank_is_named_by_every_other_rank(tmp_path):
    for result in run("lost", 4, tmp_path, missing=(2,)):
        for algorithm, failure in result["lost"].items():
            name, text, exit_code = failure["error"]
            assert (name, exit_code) == ("LostRankError", 3)
            assert failure["seconds"] < 20
            assert "of all-reduce call 2" in text
            if algorithm != "hierarchical_doubling":
                assert text.startswith("lost rank 2 in step ")


def test_fabric_files_choose_or_fail_on_every_rank(tmp_path):
    fabric = replace(
        BUILTIN_FABRICS["ethernet-10g"],
        name="here",
        fingerprint=fingerprint(),
        tables=tuple(
            MeasuredTable(
                algorithm=name, ranks=2, dtype="float32", bytes=(1024, 65536), latency_us=times, source="made up"
            )
            for name, times in (("ring", (9.0, 20.0)), ("one_shot", (5.0, 40.0)), ("backend", (30.0, 21.0)))
        ),
    )  # fmt: skip
    paths = {name: str(tmp_path / name) for name in ("GOOD", "DAMAGED", "FOREIGN")}
    save(fabric, Path(paths["GOOD"]))
    save(replace(fabric, fingerprint={"cpu": "another", "cores": "2"}), Path(paths["FOREIGN"]))
    Path(paths["DAMAGED"]).write_text("{")
    results = run("fabric_files", 2, tmp_path, **paths)
    for result in results:
        assert result["fabric_files"]["damaged"][0] == "FileFormatError"
        assert paths["DAMAGED"] in result["fabric_files"]["damaged"][1]
        assert result["fabric_files"]["chosen"] == [
            "one_shot",
            "one_shot",
            "ring",
            "ring",
            "backend",
        ]
    assert ["another x 2" in text for text in results[0]["fabric_files"]["foreign"]] == [True]
    assert results[1]["fabric_files"]["foreign"] == []
