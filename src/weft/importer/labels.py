"""Step labels: what an engine says about the batch of each forward pass.

vLLM     ``execute_context_1(128)_generation_3(3)``; the detailed form has
         ``(sq128sk256sqsq1sqsk1)`` with sq the query tokens of the step
SGLang   ``step[EXTEND bs=2 toks=512]``, ``step[DECODE bs=64]``
weft     ``weft_context_1(128)_generation_3(3)_logits_4``
TRT-LLM  ``[Executor] _forward_step 7: 1 ctx reqs, 128 ctx tokens, 3 gen reqs``
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from weft.vocabulary.schedule import Phase

LabelFamily = Literal["vllm", "weft", "sglang", "trtllm"]

_COUNTED: Final = re.compile(
    r"(execute|weft)_(?:\d+_)?context_(\d+)\((?:sq)?(\d+)[^)]*\)"
    r"_generation_(\d+)\((?:sq)?(\d+)[^)]*\)(?:_logits_(\d+))?"
)
_SGLANG: Final = re.compile(r"step\[(\w+) bs=(\d+)(?: toks=(\d+))?[^\]]*\]")
_TRTLLM: Final = re.compile(
    r"\[Executor\] _forward_step[^:]*: (\d+) ctx reqs, (?:(\d+) ctx tokens, )?(\d+) gen reqs"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLabel:
    """The batch of one step; token counts are None where the label does not tell them."""

    family: LabelFamily
    phase: Phase
    context_requests: int
    context_tokens: int | None
    generation_requests: int
    generation_tokens: int | None
    logits: int | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.context_requests or self.generation_requests)

    @property
    def num_tokens(self) -> int | None:
        """Token rows that cross every layer in this step."""
        if self.context_tokens is None or self.generation_tokens is None:
            return None
        return self.context_tokens + self.generation_tokens

    @property
    def num_sequences(self) -> int:
        """Rows of logits: what the label says, else one a request, and one a token of drafts."""
        if self.logits is not None:
            return self.logits
        return self.context_requests + max(self.generation_requests, self.generation_tokens or 0)


def parse_label(name: str) -> StepLabel | None:
    """The label that an annotation's name is, or None."""
    if name.startswith(("execute_", "weft_")):
        return _counted(name)
    if name.startswith("step["):
        return _sglang(name)
    return _trtllm(name) if name.startswith("[Executor]") else None


def _counted(name: str) -> StepLabel | None:
    match = _COUNTED.match(name)
    if not match:
        return None
    engine, *counts, logits = match.groups()
    family: LabelFamily = "weft" if engine == "weft" else "vllm"
    label = _label(family, *map(int, counts))
    return replace(label, logits=int(logits)) if logits else label


def _sglang(name: str) -> StepLabel | None:
    match = _SGLANG.match(name)
    if not match:
        return None
    mode, batch = match[1], int(match[2])
    tokens = None if match[3] is None else int(match[3])
    if mode == "EXTEND":
        return _label("sglang", batch, tokens, 0, 0)
    if mode == "DECODE":
        return _label("sglang", 0, 0, batch, batch)
    if mode == "IDLE" or not batch:
        return _label("sglang", 0, 0, 0, 0)
    if mode == "MIXED":
        return replace(_label("sglang", 0, None, batch, None), phase="mixed")
    return _label("sglang", 0, 0, batch, None)


def _trtllm(name: str) -> StepLabel | None:
    match = _TRTLLM.match(name)
    if not match:
        return None
    context, generation = int(match[1]), int(match[3])
    tokens = int(match[2]) if match[2] is not None else None if context else 0
    return _label("trtllm", context, tokens, generation, generation)


def _label(
    family: LabelFamily,
    context_requests: int,
    context_tokens: int | None,
    generation_requests: int,
    generation_tokens: int | None,
) -> StepLabel:
    phase: Phase = "decode" if generation_requests else "other"
    if context_requests:
        phase = "mixed" if generation_requests else "prefill"
    return StepLabel(
        family=family,
        phase=phase,
        context_requests=context_requests,
        context_tokens=context_tokens,
        generation_requests=generation_requests,
        generation_tokens=generation_tokens,
    )
