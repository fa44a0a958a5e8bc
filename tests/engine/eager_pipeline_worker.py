"""A vLLM CPU worker that runs pipelines without compiling the model.

With ``enforce_eager`` vLLM 0.32 skips the warm-up in which a later stage allocates
the buffers for what it receives, and then asserts that they exist.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker


class EagerPipelineWorker(CPUWorker):
    """Allocates the receive buffers right after loading the model."""

    def load_model(self, *arguments: Any, **options: Any) -> None:
        super().load_model(*arguments, **options)
        if get_pp_group().is_first_rank:
            return
        runner = self.model_runner
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.dtype, device=runner.device
        )
