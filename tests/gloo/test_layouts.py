"""Every layout as real processes: transformers' logits and tokens, the closed form's rows.

By default all families run under tp2xpp2 and all with experts under ep2, a few under each other
layout; WEFT_LAYOUT_FAMILIES=all runs every family under every layout that it can have.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from checkpoints import make_checkpoint, reference_greedy, reference_logits, reference_model
from weft.closed_form.schedule import closed_form
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.launch.elastic import Launch, run_ranks
from weft.vocabulary.conventions import ENGINES
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

FAMILIES = (
    "llama",
    "llama-tied",
    "llama-attention-bias",
    "qwen2",
    "qwen3",
    "gemma3",
    "mixtral",
    "qwen3-moe",
    "deepseek-v2",
    "glm4-moe",
    "qwen3-next",
    "qwen3.5-moe",
    "gpt-oss",
    "minimax-m2",
    "llama4",
    "qwen3.5",
)
NUM_TOKENS = 48
NUM_ENGINE_TOKENS = 16
LAYOUTS = {
    "tp2": Layout(tp=2),
    "tp4": Layout(tp=4),
    "pp2": Layout(pp=2),
    "pp4-uneven": Layout(pp=4, stage_layers=(1, 2, 1, 1)),
    "tp2xpp2": Layout(tp=2, pp=2),
    "sp2": Layout(tp=2, sp=2),
    "sp2xpp2": Layout(tp=2, sp=2, pp=2),
    "dp2": Layout(dp=2),
    "ep2": Layout(tp=2, ep=2),
    "ep2xpp2": Layout(tp=2, pp=2, ep=2),
    "ep2-sp2": Layout(tp=2, sp=2, ep=2),
    "dp2xep2": Layout(dp=2, ep=2),
    "dp2xtp2xep4": Layout(dp=2, tp=2, ep=4),
}
if os.environ.get("WEFT_LAYOUT_FAMILIES") == "all":
    LAYOUTS |= {
        "dp2xsp2xep4": Layout(dp=2, tp=2, sp=2, ep=4),
        "dp2xpp2xep2": Layout(dp=2, pp=2, ep=2),
    }
EXPERT_FAMILIES = FAMILIES[FAMILIES.index("mixtral") : -1]
OLDER_FAMILIES = FAMILIES[: FAMILIES.index("glm4-moe")]
ONE_IN = 4


def families_of(name: str) -> tuple[str, ...]:
    """The first is held against every engine's rows."""
    layout = LAYOUTS[name]
    able = EXPERT_FAMILIES if layout.ep > 1 else FAMILIES
    if layout.sp > 1 or name == "ep2xpp2":
        able = tuple(family for family in able if family in OLDER_FAMILIES)
    if name in ("tp2xpp2", "ep2") or os.environ.get("WEFT_LAYOUT_FAMILIES") == "all":
        return able
    return (able[0], *able[1:][list(LAYOUTS).index(name) % ONE_IN :: ONE_IN])


def engines_of(layout: Layout) -> list[str]:
    """Those whose exchange of rows with experts on other replicas is run, not only described."""
    known = {
        name
        for name, engine in ENGINES.items()
        if engine.expert_exchange == "all_to_all" or (engine.gathers_replicas and not engine.deepep)
    }
    return sorted(known if layout.joins_replicas else ENGINES)


def family_of(engine: str, layout: Layout, families) -> str:
    """Whose rows are looked at: vLLM scatters those of latent attention beside joined replicas."""
    return "deepseek-v2" if engine == "vllm" and layout.joins_replicas else families[0]


def random_prompts() -> list[list[int]]:
    generator = random.Random(5)
    return [[generator.randrange(3, 199) for _ in range(n)] for n in (40, 3, 21)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: make_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def expected(checkpoints):
    prompts = random_prompts()
    answers = {}
    for family, directory in checkpoints.items():
        model = reference_model(directory)
        one_rank = LLM(str(directory), dtype="float32")
        sampling = SamplingParams(
            max_tokens=12, temperature=0.8, top_k=50, top_p=0.9, seed=7, ignore_eos=True
        )
        answers[family] = {
            "logits": reference_logits(model, prompts[0])[-1],
            "greedy": [reference_greedy(model, prompt, NUM_TOKENS) for prompt in prompts],
            "sampled": [list(c.token_ids) for c in one_rank.generate(prompts, sampling)],
        }
    return answers


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, checkpoints, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    layout = LAYOUTS[name]
    families = families_of(name)
    if layout.stage_layers is not None:
        num_layers = sum(layout.stage_layers)
        families = [f for f in families if load_spec(str(checkpoints[f])).num_layers == num_layers]
    job = {
        "layout": asdict(layout),
        "checkpoints": {family: str(checkpoints[family]) for family in families},
        "engines": {
            engine: str(checkpoints[family_of(engine, layout, families)])
            for engine in engines_of(layout)
        },
        "prompts": random_prompts(),
        "num_tokens": NUM_TOKENS,
        "num_engine_tokens": NUM_ENGINE_TOKENS,
        "output": str(tmp_path / "results.json"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    worker = Path(__file__).parent / "layout_worker.py"
    run_ranks([str(worker), str(tmp_path / "job.json")], Launch(ranks_per_node=layout.world_size))
    results = json.loads((tmp_path / "results.json").read_text())
    for family in families:
        got, want = results[family], expected[family]
        torch.testing.assert_close(torch.tensor(got["logits"]), want["logits"], atol=1e-4, rtol=0)
        assert got["greedy"] == want["greedy"], family
        assert got["sampled"] == want["sampled"], family
    for engine in engines_of(layout):
        run, family = results[f"engine {engine}"], family_of(engine, layout, families)
        first = [tokens[:NUM_ENGINE_TOKENS] for tokens in expected[family]["greedy"]]
        assert run["greedy"] == first, engine
        check_rows(run["rows"], checkpoints[family], layout, engine)


def check_rows(rows, checkpoint, layout, engine):
    from dataclasses import replace

    spec = replace(load_spec(str(checkpoint)), dtype="float32")
    workload = Workload(prompt_tokens=len(random_prompts()[0]), decode_tokens=6, batch=3)
    formula = closed_form(spec, layout, workload, engine).to_dict()["collectives"]
    assert [_comparable(row) for row in rows] == [_comparable(row) for row in formula]
    assert all(row["duration_us"]["min"] > 0 for row in rows)


def _comparable(row):
    ignored = ("provenance", "fused", "duration_us", "wait_us", "transfer_us", "bound")
    return {key: value for key, value in row.items() if key not in ignored}
