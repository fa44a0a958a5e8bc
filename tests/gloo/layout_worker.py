"""One rank of tests/gloo/test_layouts.py: every checkpoint and engine on one layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from stage_logits import stage_logits
from weft.comm.groups import open_groups
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.engine.step import Step
from weft.launch.environment import current_rank
from weft.launch.worker import worker
from weft.tracing.run import record_run
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload


def last_logits(llm: LLM, prompt: list[int]) -> list[float] | None:
    """Whole-vocabulary logits of the prompt's last row, on rank 0 of the last stage."""
    engine = llm.engine
    engine.add(10**6, prompt, SamplingParams(max_tokens=1))
    logits = stage_logits(engine, Step.of(engine.scheduler.schedule()))
    engine.abort(10**6)
    if logits is None:
        return None
    return llm.groups.tp.all_gather(logits, 1)[0, : engine.spec.vocab_size].tolist()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    layout = Layout(**job["layout"])
    greedy = SamplingParams(max_tokens=job["num_tokens"], ignore_eos=True)
    short = SamplingParams(max_tokens=job["num_engine_tokens"], ignore_eos=True)
    sampled = SamplingParams(
        max_tokens=12, temperature=0.8, top_k=50, top_p=0.9, seed=7, ignore_eos=True
    )
    results: dict[str, object] = {}
    with open_groups(layout, rank=current_rank().rank, timeout_s=60) as groups:
        for name, directory in job["checkpoints"].items():
            llm = LLM(directory, layout, dtype="float32", groups=groups)
            prompts = job["prompts"]
            logits = llm.groups.host_gather(last_logits(llm, prompts[0]))
            results[name] = {
                "logits": next(row for row in reversed(logits) if row is not None),
                "greedy": [c.token_ids for c in llm.generate(prompts, greedy)],
                "sampled": [c.token_ids for c in llm.generate(prompts, sampled)],
            }
        for engine, directory in job["engines"].items():
            llm = LLM(directory, layout, dtype="float32", groups=groups, conventions=engine)
            workload = Workload(prompt_tokens=len(prompts[0]), decode_tokens=6, batch=3)
            schedule, _ = record_run(llm, workload, [prompts[0], prompts[0][::-1], prompts[0]])
            results[f"engine {engine}"] = {
                "rows": schedule.to_dict()["collectives"],
                "greedy": [c.token_ids for c in llm.generate(prompts, short)],
            }
        if groups.rank == 0:
            Path(job["output"]).write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with worker():
        main()
