"""A step that fails ends its requests on every rank at the same step; the engine goes on."""

from __future__ import annotations

import pytest

from engine_cases import Ask, Case, differences, write_model
from engine_crew import LAYOUTS, Crew, Fault, references

ASKS = tuple(
    Ask(stem=number % 3, length=3 + number, max_tokens=8, style=number % 4, at=3 * number)
    for number in range(6)
)
CASE = Case(asks=ASKS, spare=40, block_size=4, max_batch_tokens=6, max_batch_requests=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(model):
    return references(model)["float32"]


@pytest.fixture(scope="module", params=["tp2", "pp2"])
def crew(request, model):
    with Crew(model, LAYOUTS[request.param]) as crew:
        yield crew


def failing(crew, alone, fault, overlap):
    """Which requests ended by an error; what the others got is right, the next load too."""
    config = CASE.config | {"overlap": overlap}
    arrivals = [alone.arrival(ask) for ask in ASKS]
    outcomes = crew.play(config, arrivals, fault)
    wrong = [number for number, one in enumerate(outcomes) if one.finish_reason == "error"]
    for number in wrong:
        tokens = outcomes[number].tokens
        assert tokens == alone.outcome(ASKS[number]).tokens[: len(tokens)]
    rest = [number for number in range(len(ASKS)) if number not in wrong]
    kept = Case(asks=tuple(ASKS[number] for number in rest))
    assert not differences(kept, alone, [outcomes[number] for number in rest])
    assert not differences(CASE, alone, crew.play(config, arrivals))
    return wrong


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("calls", [(1,), (5,), (6, 7, 11)])
def test_a_step_that_fails_on_all_ranks_ends_its_requests_alone(crew, alone, calls, overlap):
    wrong = failing(crew, alone, Fault(ranks=(0, 1), calls=calls), overlap)
    assert 0 < len(wrong) < len(ASKS)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_alone(crew, alone, rank, request):
    """Stages take each other's failed steps; ranks of one stage cannot meet again."""
    if "pp2" in request.node.name:
        fault = Fault(ranks=(rank,), calls=(5,))
        assert 0 < len(failing(crew, alone, fault, overlap=False)) < len(ASKS)
    else:
        words = crew.last_words(rank, CASE.config, [alone.arrival(ask) for ask in ASKS])
        assert f"rank {rank} failed alone, a step failed: RuntimeError: planted" in words
