"""The engine under random loads on every layout: each request's tokens are those it has alone.

``make soak-engine`` plays 20,000 cases.
"""

from __future__ import annotations

import pytest
from hypothesis import Phase

from engine_cases import write_model
from engine_crew import LAYOUTS, Crew, check_many, references
from weft.engine.block_pool import BlockPool
from weft.engine.request import Request
from weft.engine.scheduler import Chunk
from weft.vocabulary.layout import Layout

CASES = {"1": 150, "tp2": 50, "pp2": 60, "tp2xpp2": 40}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(model):
    return references(model)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_request_is_what_it_is_alone(name, model, alone):
    with Crew(model, LAYOUTS[name]) as crew:
        check_many(crew, alone, CASES[name])


def _decode_by_shape(monkeypatch):
    """A lone row past the prompt was once taken for a decode."""
    from weft.engine import scheduler

    real = scheduler._chunk

    def chunk(request: Request, budget: int) -> Chunk:
        count = min(request.length - request.num_computed, budget)
        request.has_last_id = count == 1 and request.num_computed >= len(request.prompt)
        return real(request, budget)

    monkeypatch.setattr(scheduler, "_chunk", chunk)


def _row_not_cleared(monkeypatch):
    real = Request.leave_row

    def leave_row(self: Request) -> None:
        kept = self.has_last_id
        real(self)
        self.has_last_id = kept

    monkeypatch.setattr(Request, "leave_row", leave_row)


def _block_freed_early(monkeypatch):
    """A request's first block is free again as soon as it has a second one."""
    grow = BlockPool.grow

    def grow_and_free(self: BlockPool, blocks: list[int], num_positions: int) -> bool:
        done = grow(self, blocks, num_positions)
        if len(blocks) > 1 and blocks[0] not in self._blank:
            self._blank.append(blocks[0])
        return done

    def release(self: BlockPool, blocks: list[int]) -> None:
        self._blank.extend(block for block in blocks if block not in self._blank)

    monkeypatch.setattr(BlockPool, "grow", grow_and_free)
    monkeypatch.setattr(BlockPool, "release", release)


def _wrong_drafts_kept(monkeypatch):
    """What is sampled after a wrong draft counts."""
    monkeypatch.setattr(Chunk, "is_wrong", property(lambda chunk: chunk.request.is_finished))


@pytest.mark.parametrize(
    "plant", [_decode_by_shape, _row_not_cleared, _block_freed_early, _wrong_drafts_kept]
)
def test_planted_faults_are_found_within_200_cases(plant, model, alone, monkeypatch):
    plant(monkeypatch)
    with Crew(model, Layout()) as crew, pytest.raises(AssertionError, match="tokens"):
        check_many(crew, alone, 200, phases=[Phase.generate], derandomize=True)
