"""A rank of a run over gloo under torch.profiler with an ExecutionTraceObserver."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ExecutionTraceObserver, ProfilerActivity, profile, record_function


def main(folder: Path, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2
    )
    observer = ExecutionTraceObserver().register_callback(str(folder / f"et_rank{rank}.json"))
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=False, execution_trace_observer=observer
    ) as recorded:
        for label, rows in (("execute_context_1(6)_generation_0(0)", 6),
                            ("execute_context_0(0)_generation_1(1)", 1)):  # fmt: skip
            with record_function(label):
                for _ in range(5):
                    dist.all_reduce(torch.rand(rows, 64, dtype=torch.bfloat16))
                shard = torch.rand(1, 256, dtype=torch.bfloat16)
                dist.all_gather([torch.empty_like(shard) for _ in range(2)], shard)
    recorded.export_chrome_trace(str(folder / f"rank{rank}.json"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
