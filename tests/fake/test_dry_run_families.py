"""Dry run and closed form agree for random configs of every family, layout and engine.

``WEFT_FAMILY_CASES=200 pytest tests/fake/test_dry_run_families.py`` draws 200.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from config_cases import BASES, random_config, spec_of
from weft.closed_form.schedule import closed_form
from weft.errors import LayoutError, WorkloadError
from weft.tracing.dry_run import dry_run
from weft.vocabulary.comparison import compare
from weft.vocabulary.conventions import ENGINES
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation
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
        try:
            found = Layout(
                tp=tp,
                pp=draw.randint(1, model.num_layers),
                sp=draw.choice([1, 1, tp]),
                dp=dp,
                ep=draw.choice([1, tp, dp * tp]) if model.is_moe else 1,
                dcp=draw.choice([1, 1, 2, tp]),
            )
            found.check_model(model)
        except LayoutError:
            continue
        return found


def steps(draw: random.Random, model: ModelSpec) -> dict[str, Any]:
    """Guesses in half of the cases, and other ranks for the prompts in a third."""
    options: dict[str, Any] = {}
    if draw.random() < 0.5:
        num_drafts = draw.randint(1, 4)
        options["speculation"] = Speculation(
            method=draw.choice(["ngram", "mtp", "eagle"]),
            num_drafts=num_drafts,
            accepted=draw.choice([None, 0.0, num_drafts / 2]),
        )
    if draw.random() < 0.33:
        options["prefill_layout"] = layout(draw, model)
    return options


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
    engine, options = draw.choice(sorted(ENGINES)), steps(draw, model)
    try:
        formula = closed_form(model, where, load, engine, **options)
    except (LayoutError, WorkloadError) as refusal:
        with pytest.raises(type(refusal)):
            dry_run(model, where, load, engine, **options)
        return
    dry = dry_run(model, where, load, engine, **options)
    wrong = [row for row in compare(formula, dry) if row.verdict != "equal"]
    assert not wrong, (model.family, where, options, wrong[0])
    assert formula.totals == dry.totals
