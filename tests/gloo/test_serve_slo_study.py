"""``weft study slo``: a layout served and measured, and a server given by its URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_harness import serving
from weft.bench.serving.slo_study import layout_options
from weft.cli.output import OutputFormat
from weft.cli.study_slo import study_slo
from weft.errors import UserError
from weft.vocabulary.layout import Layout

DEFAULTS = {
    "model": "embedded",
    "layouts": "",
    "url": None,
    "prompt_tokens": 4,
    "output_tokens": 4,
    "num_requests": 6,
    "concurrency": 2,
    "rate": None,
    "goodput": "ttft:60000",
    "accelerator": None,
    "fabric": None,
    "weights": "dummy",
    "device": "cpu",
    "output": None,
    "output_format": OutputFormat.TABLE,
}


def test_a_layout_and_a_server_stand_in_one_table(tmp_path: Path, capsys):
    output = tmp_path / "slo.json"
    with serving() as server:
        study_slo(**DEFAULTS | {"layouts": "tp2", "url": [server.url], "output": output})
    tp2, other = json.loads(output.read_text())["rows"]
    assert (tp2["name"], other["name"]) == ("tp2", server.url)
    for row in (tp2, other):
        assert row["result"]["requests"]["completed"] == 6
        assert row["result"]["definitions"]["weft"]["goodput"]["share"] == 1
    assert 0 < tp2["communication"]["tpot"]["share"] < 1
    assert "tpot_in_collectives" in capsys.readouterr().out


def test_predicted_stands_beside_measured(capsys, monkeypatch):
    from dataclasses import replace

    import weft.bench.serving.slo_study as study

    result = study.measure
    with serving() as server:

        class Served:
            def __init__(self, *_: object) -> None: ...
            def __enter__(self) -> str:
                return server.url

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(study, "served", Served)
        monkeypatch.setattr(
            study,
            "measure",
            lambda plan, url, *, model, profile: result(
                replace(plan, vocab_size=200), url, model="embedded", profile=profile
            ),
        )
        options = {"layouts": "tp2", "accelerator": "h200-sxm", "rate": 200.0, "concurrency": None}
        study_slo(**DEFAULTS | options | {"output_format": OutputFormat.JSON})
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert set(row["predicted"]) == {"ttft_ms", "tpot_ms", "e2e_ms"}
    assert all(value > 0 for value in row["predicted"].values())


def test_layouts_as_options():
    assert layout_options(Layout()) == []
    assert layout_options(Layout.parse("tp2xpp2")) == ["--tp", "2", "--pp", "2"]


def test_nothing_to_measure():
    with pytest.raises(UserError, match="layouts"):
        study_slo(**DEFAULTS)
