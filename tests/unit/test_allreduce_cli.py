"""``weft predict allreduce``, ``weft fabrics`` and the bad calls of the measuring commands."""

from __future__ import annotations

import json

import pytest
import torch

from weft.allreduce import scale
from weft.bench.allreduce_ranks import DEFAULT_ALGORITHMS, known_algorithms
from weft.cli.main import run
from weft.fabric import load
from weft.fabric.builtin import BUILTIN_FABRICS
from weft.fabric.files import from_json, save


def output(capsys, *words):
    code = run(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


PREDICT = ("predict", "allreduce", "--nodes", "16", "--gpus-per-node", "4")


def test_predict_prints_every_algorithm_and_the_published_range(capsys):
    code, out, err = output(capsys, *PREDICT, "--sizes", "128K:2M")
    assert (code, err) == (0, "")
    assert "16 x 4 ranks · a100-slingshot11" in out
    assert "published 1.9-3.6x" in out
    assert "hierarchical_doubling is faster than two_shot" in out


@pytest.mark.parametrize("fabric", BUILTIN_FABRICS)
def test_predict_json_is_the_model(capsys, fabric):
    words = ("predict", "allreduce", "--fabric", fabric, "--sizes", "8K,1M", "--format", "json")
    code, out, _ = output(capsys, *words)
    document = json.loads(out)
    width = load(fabric).gpus_per_node
    assert code == 0
    assert (document["nodes"], document["gpus_per_node"]) == (16, width)
    rows = scale.predict([8192, 2**20], 16, width, load(fabric))
    assert [row["times_us"] for row in document["rows"]] == [row.times_us for row in rows]


def test_predict_csv_and_one_node(capsys):
    words = ("predict", "allreduce", "--nodes", "1", "--fabric", "h200-nvlink", "--format", "csv")
    code, out, _ = output(capsys, *words)
    assert code == 0
    assert out.splitlines()[0].startswith("bytes,ring,")


def test_a_fabric_without_nccl_has_no_nccl_columns(capsys, tmp_path):
    document = json.loads(output(capsys, "fabrics", "gh200-ndr", "--format", "json")[1])
    save(from_json(document | {"uses_nccl": False}), tmp_path / "f.json")
    code, out, _ = output(capsys, "predict", "allreduce", "--fabric", str(tmp_path / "f.json"))
    assert code == 0
    assert "nccl" not in out


def test_fabrics_lists_all_and_shows_sources(capsys):
    code, out, _ = output(capsys, "fabrics")
    assert code == 0
    assert all(name in out for name in BUILTIN_FABRICS)
    code, out, _ = output(capsys, "fabrics", "a100-slingshot11", "--format", "csv")
    assert code == 0
    assert "200 Gb/s" in out
    everything = json.loads(output(capsys, "fabrics", "--format", "json")[1])
    assert [from_json(document).name for document in everything] == list(BUILTIN_FABRICS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "allreduce", "--nodes", "0"), "--nodes 0: must be 1 to"),
        (("predict", "allreduce", "--gpus-per-node", "0"), "--gpus-per-node 0"),
        (("predict", "allreduce", "--nodes", "1", "--gpus-per-node", "1"), "use --nodes 2"),
        (("predict", "allreduce", "--fabric", "token-ring"), "fabric token-ring: no such file"),
        (("predict", "allreduce", "--sizes", "many"), "--sizes many"),
        (("fabrics", "token-ring"), "token-ring"),
        (("bench", "allreduce", "--ranks-per-node", "1"), "use 2"),
        (("bench", "allreduce", "--nodes", "0"), "--nodes 0"),
        (("bench", "allreduce", "--sizes", "2M:1K"), "swap them"),
        (("bench", "allreduce", "--dtypes", "int9"), "'int9' is unknown"),
        (("bench", "allreduce", "--algorithms", "ring,magic"), "'magic' is unknown"),
        (("bench", "allreduce", "--rounds", "1"), "at least 5"),
        (("bench", "allreduce", "-o", "/nowhere/at/all"), "is not a folder"),
        (("bench", "allreduce", "--device", "tpu"), "--device tpu: choose auto, cpu or cuda"),
        (("bench", "allreduce", "--device", "cpu", "--mode", "graph"), "'graph' is unknown"),
        (("bench", "allreduce", "--transports", "nvshmem"), "use --nodes 2"),
        (("bench", "allreduce", "--nodes", "2", "--transports", "fax"), "'fax' is unknown"),
        (("bench", "allreduce", "--nodes", "2", "--transports", "tcp"), "for GPUs"),
        (("calibrate", "--seconds", "0"), "must be above 0"),
        (("calibrate", "--device", "tpu"), "--device tpu"),
        (("calibrate", "-o", "/nowhere/at/all.json"), "there is no folder"),
    ],
)
def test_mistakes_are_one_line_and_nothing_on_stdout(capsys, words, message):
    code, out, err = output(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_librarys_own_is_always_measured_beside():
    assert known_algorithms("all") == DEFAULT_ALGORITHMS
    assert known_algorithms("ring, one_shot") == ("backend", "ring", "one_shot")


@pytest.mark.parametrize("command", [("bench", "allreduce"), ("calibrate",)])
def test_without_a_gpu_the_measuring_commands_say_so(capsys, command):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, out, err = output(capsys, *command, "--device", "cuda")
    assert (code, out) == (3, "")
    assert err == "weft: error: --device cuda: torch sees no GPU here; use --device cpu\n"
