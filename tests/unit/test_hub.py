"""Hub ids through a local hub cache, without a network."""

from __future__ import annotations

import shutil

import pytest

from checkpoints import make_checkpoint
from weft.cli.main import run
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache that holds ``weft/tiny`` the way huggingface_hub stores it."""
    repository = tmp_path / "hub" / "models--weft--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    make_checkpoint(tmp_path / "model", "qwen2")
    shutil.copytree(tmp_path / "model", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_cached_hub_model_is_the_model_of_its_directory(hub_cache):
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    from_hub = LLM("weft/tiny").generate([[4, 5]], sampling)
    from_directory = LLM(str(hub_cache / "model")).generate([[4, 5]], sampling)
    assert from_hub == from_directory


def test_a_hub_id_that_cannot_be_had_is_one_line(hub_cache, capsys):
    assert run(["predict", "weft/absent"]) == 2
    err = capsys.readouterr().err
    assert "weft/absent" in err
    assert len(err.strip().splitlines()) == 1
