"""What the device knows of how each running request's tokens are chosen, by request row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft.engine.step import Entering


class SamplingTable:
    """Parameters of the requests in R rows, the last of which belongs to nobody and is greedy.

    numbers [R, 6] fp32: temperature, top_p, min_p, penalties for repetition, presence, frequency;
    integers [R, 3] int64: seed, prompt length, top_k; counts [R, v] int32 and in_prompt [R, v]:
    how often each token is in a request's output, and whether it is in its prompt (only once a
    request has come that is penalized).
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self.numbers = torch.zeros((num_rows, 6), dtype=torch.float32, device=device)
        self.integers = torch.zeros((num_rows, 3), dtype=torch.int64, device=device)
        self._shape, self._device = (num_rows, vocab_size), device
        self.counts = torch.empty(0, dtype=torch.int32, device=device)
        self.in_prompt = torch.empty(0, dtype=torch.bool, device=device)

    def enter(self, requests: Sequence[Entering]) -> None:
        """Requests that have just got their rows."""
        if not requests:
            return
        rows = self._copied(np.array([request.row for request in requests], dtype=np.int64))
        self.numbers.index_copy_(0, rows, self._copied(_numbers(requests)))
        self.integers.index_copy_(0, rows, self._copied(_integers(requests)))
        for request in requests:
            if request.sampling.penalizes:
                self._count(request)

    def note(self, rows: torch.Tensor, ids: torch.Tensor) -> None:
        """Penalized requests in ``rows`` [M] got the tokens ``ids`` [M]."""
        ones = torch.ones_like(rows, dtype=torch.int32)
        self.counts.index_put_((rows, ids.clamp(min=0)), ones, accumulate=True)

    def _count(self, request: Entering) -> None:
        if not len(self.counts):
            self.counts = self.counts.new_zeros(self._shape)
            self.in_prompt = self.in_prompt.new_zeros(self._shape)
        tokens = self._copied(np.array([*request.prompt, *request.output], dtype=np.int64))
        prompt, output = tokens.tensor_split([len(request.prompt)])
        self.in_prompt[request.row].zero_().index_fill_(0, prompt, value=True)
        counts = self.counts[request.row].zero_()
        counts.index_put_((output,), torch.ones_like(output, dtype=torch.int32), accumulate=True)

    def _copied(self, values: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def _numbers(requests: Sequence[Entering]) -> npt.NDArray[Any]:
    each = [request.sampling for request in requests]
    return np.array(
        [
            (
                0.0 if one.is_greedy else one.temperature,
                one.top_p,
                one.min_p,
                one.repetition_penalty,
                one.presence_penalty,
                one.frequency_penalty,
            )
            for one in each
        ],
        dtype=np.float32,
    )


def _integers(requests: Sequence[Entering]) -> npt.NDArray[Any]:
    return np.array(
        [
            ((request.sampling.seed or 0) % (1 << 63), len(request.prompt), request.sampling.top_k)
            for request in requests
        ],
        dtype=np.int64,
    )
