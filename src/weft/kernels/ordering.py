"""The order of a communicator's calls over CUDA streams."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch


class StreamOrder:
    """Makes every call wait for the one before it, from whatever stream it comes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Stream | None = None
        self._handle = -1

    def enter(self) -> int:
        """Order a call on the current stream after the last one; the stream's handle."""
        stream = torch.cuda.current_stream(self._device)
        handle = stream.cuda_stream
        if handle != self._handle:
            self._follow(stream)
            self._last, self._handle = stream, handle
        return handle

    def _follow(self, stream: torch.cuda.Stream) -> None:
        """Wait for the last call, where both streams belong to the same timeline."""
        last = self._last
        if last is None or capturing(last) != capturing(stream):
            return
        stream.wait_stream(last)


def capturing(stream: torch.cuda.Stream) -> int:
    """The identity of the graph that ``stream`` is captured into, 0 if none."""
    return _capture_id()(stream.cuda_stream)


@cache
def _capture_id() -> Callable[[int], int]:
    from weft.kernels.driver import driver

    module = driver()

    def identify(stream: int) -> int:
        status, capture, identifier, *_ = module.cuStreamGetCaptureInfo(stream)
        active = module.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        return int(identifier) if int(status) == 0 and capture == active else 0

    return identify
