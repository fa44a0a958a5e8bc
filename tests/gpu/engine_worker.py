"""One rank of test_engine_layouts.py: greedy tokens of a small model on one layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from weft.comm.groups import open_groups
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.launch.environment import current_rank, pick_device
from weft.launch.worker import worker
from weft.vocabulary.layout import Layout


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    layout, place = Layout(**job["layout"]), current_rank()
    device = pick_device("cuda", place.local_rank)
    sampling = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=2)
    results = {}
    with open_groups(
        layout, rank=place.rank, device=device, timeout_s=60, all_reduce="library"
    ) as plain:
        for name, config in job["runs"].items():
            with plain.with_all_reduce(config.pop("all_reduce", "auto")) as groups:
                llm = LLM(
                    job["model"], layout, groups=groups, weights="dummy", cache_tokens=4096,
                    max_batch_requests=8, **config,
                )  # fmt: skip
                completions = llm.generate(job["prompts"], sampling)
                results[name] = {
                    "ids": [c.token_ids for c in completions],
                    "logprobs": [[token.logprob for token in c.logprobs] for c in completions],
                }
                llm.engine.close()
        if place.rank == 0:
            Path(job["output"]).write_text(json.dumps(results))


if __name__ == "__main__":
    with worker():
        main()
