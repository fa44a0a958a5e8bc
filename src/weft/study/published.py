"""The published tables, entry by entry.

Source: Xu et al., "Characterizing Communication Patterns in Distributed Large Language
Model Inference": bf16, one request of 128 prompt and 128 generated tokens, engine
``vllm-v0``. Counts are those of the published convention: send and all-gather over all
stages, all-reduce of the first stage, gather of the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from weft.vocabulary.schedule import Operation, Phase, Schedule
from weft.vocabulary.workload import Workload

ENGINE: Final = "vllm-v0"
WORKLOAD: Final = Workload(prompt_tokens=128, decode_tokens=128, batch=1)


@dataclass(frozen=True, kw_only=True)
class PublishedEntry:
    """``count`` calls of ``op`` with messages of ``message_bytes``; ``shape`` where it is printed."""

    model: str
    layout: str
    phase: Phase
    op: Operation
    count: int
    message_bytes: int
    shape: tuple[int, ...] | None = None

    def count_in(self, schedule: Schedule) -> int:
        """Calls of this kind in ``schedule``, counted as the tables count."""
        rows = [
            row
            for row in schedule.collectives
            if (row.phase, row.op, row.message_bytes) == (self.phase, self.op, self.message_bytes)
            and self.shape in (None, _printed_shape(row.op, row.input_shape, row.output_shape))
        ]
        if self.op == "all_reduce":
            rows = [row for row in rows if row.stage == 0]
        return sum(row.count for row in rows)


def _printed_shape(
    op: Operation, input_shape: tuple[int, ...] | None, output_shape: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    return output_shape if op == "all_gather" else input_shape


def _both_phases(
    model: str,
    layout: str,
    op: Operation,
    prefill: tuple[int, tuple[int, ...]],
    decode: tuple[int, tuple[int, ...]],
) -> list[PublishedEntry]:
    def entry(phase: Phase, count: int, shape: tuple[int, ...]) -> PublishedEntry:
        elements = 1
        for size in shape:
            elements *= size
        return PublishedEntry(
            model=model,
            layout=layout,
            phase=phase,
            op=op,
            count=count,
            message_bytes=2 * elements,
            shape=shape,
        )

    return [entry("prefill", *prefill), entry("decode", *decode)]


_8B: Final = "llama-3.1-8b"

PUBLISHED: Final = (
    *_both_phases(_8B, "tp2", "all_reduce", (65, (128, 4096)), (8255, (1, 4096))),
    *_both_phases(_8B, "tp2", "gather", (1, (64128,)), (127, (64128,))),
    *_both_phases(_8B, "tp4", "all_reduce", (65, (128, 4096)), (8255, (1, 4096))),
    *_both_phases(_8B, "tp4", "gather", (1, (32064,)), (127, (32064,))),
    *_both_phases("llama-3.2-3b", "tp2", "all_reduce", (57, (128, 3072)), (7239, (1, 3072))),
    *_both_phases("llama-2-13b", "tp2", "all_reduce", (81, (128, 5120)), (10287, (1, 5120))),
    *_both_phases(_8B, "pp2", "send", (2, (128, 4096)), (254, (1, 4096))),
    *_both_phases(_8B, "pp2", "recv", (2, (128, 4096)), (254, (1, 4096))),
    *_both_phases(_8B, "pp4", "send", (6, (128, 4096)), (762, (1, 4096))),
    *_both_phases(_8B, "pp4", "recv", (6, (128, 4096)), (762, (1, 4096))),
    *_both_phases(_8B, "tp2xpp2", "all_reduce", (33, (128, 4096)), (4191, (1, 4096))),
    *_both_phases(_8B, "tp2xpp2", "gather", (1, (64128,)), (127, (64128,))),
    *_both_phases(_8B, "tp2xpp2", "all_gather", (2, (128, 4096)), (254, (1, 4096))),
    *_both_phases(_8B, "tp2xpp2", "send", (2, (128, 2048)), (254, (1, 2048))),
    *_both_phases(_8B, "tp2xpp2", "recv", (2, (128, 2048)), (254, (1, 2048))),
)
