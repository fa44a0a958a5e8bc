"""Dry run and closed form agree for random configs of every family, layout and engine.

``WEFT_FAMILY_CASES=200 pytest tests/fake/test_dry_run_families.py`` draws 200.
"""

from __future__ import annotations

import os
import random

import pytest

from config_cases import BASES, random_config, spec_of
from weft.closed_form.schedule import closed_form
from weft.errors import LayoutError
from weft.tracing.dry_run import dry_run
from weft.vocabulary.comparison import compare
from weft.vocabulary.conventions import ENGINES
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload

NUM_CASES = int(os.environ.get("WEFT_FAMILY_CASES", "40"))


def spec(draw: random.Random) -> ModelSpec:
    """The first config of a family that weft takes."""
    family = draw.choice(sorted(BASES))
    drawn = (spec_of(family, random_config(family, draw.randrange(10**9))) for _ in range(50))
    return next(found for found in drawn if found is not None)


def layout(draw: random.Random, model: ModelSpec) -> Layout:
    while True:
        tp, dp = draw.choice([1, 2, 4]), draw.choice([1, 2])
        found = Layout(
            tp=tp,
            pp=draw.randint(1, model.num_layers),
            sp=draw.choice([1, tp]),
            dp=dp,
            ep=draw.choice([1, tp, dp * tp]) if model.is_moe else 1,
        )
        try:
            found.check_model(model)
        except LayoutError:
            continue
        return found


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_closed_form_is_the_dry_run(seed):
    draw = random.Random(f"families/{seed}")
    model = spec(draw)
    where = layout(draw, model)
    load = Workload(
        prompt_tokens=draw.randint(1, 20),
        decode_tokens=draw.randint(1, 20),
        batch=draw.randint(1, 5),
    )
    engine = draw.choice(sorted(ENGINES))
    try:
        formula = closed_form(model, where, load, engine)
    except LayoutError:
        with pytest.raises(LayoutError):
            dry_run(model, where, load, engine)
        return
    dry = dry_run(model, where, load, engine)
    wrong = [row for row in compare(formula, dry) if row.verdict != "equal"]
    assert not wrong, (model.family, where, wrong[0])
    assert formula.totals == dry.totals
