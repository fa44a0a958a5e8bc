"""EngineConfig: what an engine is built with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from weft.errors import UserError
from weft.vocabulary.checks import check_between, check_limits, check_types
from weft.vocabulary.conventions import engine_named
from weft.vocabulary.keywords import LayoutDegrees
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.weight_formats import FORMATS

Weights = Literal["auto", "dummy"]
Dtype = Literal["bfloat16", "float16", "float32", "float64"]

_LEAST: Final = {"cache_tokens": 1, "max_batch_tokens": 1}
_BETWEEN: Final = {"block_size": (1, 8192), "max_batch_requests": (1, 65536)}


class LLMOptions(LayoutDegrees, total=False):
    """The keywords of LLM beside its own: a layout's degrees and the fields of EngineConfig."""

    conventions: str
    weights: Weights
    dtype: Dtype | None
    weights_dtype: Literal["float8_e4m3fn"] | None
    seed: int
    cache_tokens: int | None
    memory_share: float
    block_size: int | None
    max_batch_tokens: int
    max_batch_requests: int
    overlap: bool | None
    graphs: bool | None
    graph_batches: tuple[int, ...] | None
    prefix_caching: bool
    speculate: str | None


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine is built with.

    conventions: whose communication to follow (see vocabulary/conventions.py);
    weights: ``auto`` reads the checkpoint where the model has one, ``dummy`` never;
    dtype: instead of the model's own; weights_dtype: layers' matrices are rounded to 8-bit floats
    while they are loaded, with a scale a row (those stored in 8 bits stay as they are); seed: of dummy weights and unseeded sampling;
    cache_tokens: positions in the key-value cache (default: 8192 on the CPU, on a GPU what
    fits into ``memory_share`` of its memory), handed out in blocks of ``block_size`` (16; 64
    for the kernels of a GPU); max_batch_*: limits of one step (tokens of prompts, requests);
    overlap: launch the next step before the ids of the one in front are read (default: on
    a GPU); graphs: decode steps as CUDA graphs, for batches of the sizes ``graph_batches``
    (default: where they can be); prefix_caching: requests that begin with the same tokens
    share the blocks of them (never while a schedule is recorded); speculate: ``ngram:N`` guesses
    up to N tokens a step from what a request has said before (no overlap then; requests with
    penalties are not guessed for).
    """

    conventions: str = "weft"
    weights: Weights = "auto"
    dtype: Dtype | None = None
    weights_dtype: Literal["float8_e4m3fn"] | None = None
    seed: int = 0
    cache_tokens: int | None = None
    memory_share: float = 0.9
    block_size: int | None = None
    max_batch_tokens: int = 8192
    max_batch_requests: int = 256
    overlap: bool | None = None
    graphs: bool | None = None
    graph_batches: tuple[int, ...] | None = None
    prefix_caching: bool = True
    speculate: str | None = None

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """The spec as this engine runs it."""
        if self.dtype is not None:
            spec = replace(spec, dtype=self.dtype)
        if self.weights_dtype is None:
            return spec
        if not spec.formats:
            return spec.stored_as(self.weights_dtype)
        others = [name for name in spec.format_names if not FORMATS[name].is_held]
        if others:
            raise UserError(
                f"`weights_dtype` {self.weights_dtype}: {spec.name} is stored as "
                f"{' and '.join(spec.format_names)} already; leave it out"
            )
        return spec

    def __post_init__(self) -> None:
        check_types(self)
        engine_named(self.conventions)
        check_limits(self, _LEAST)
        check_between(self, _BETWEEN)
        if not 0 < self.memory_share <= 1:
            raise UserError(f"`memory_share` {self.memory_share}: must be above 0 and at most 1")
        if self.speculation is not None and self.overlap:
            raise UserError(
                f"`speculate` {self.speculate}: what comes next is guessed from tokens that were "
                "read; leave `overlap` out"
            )
        if self.graph_batches is not None and min(self.graph_batches, default=0) < 1:
            raise UserError(
                f"`graph_batches` {self.graph_batches}: must be batch sizes of at least 1"
            )

    @property
    def speculation(self) -> Speculation | None:
        """How decode steps guess; UserError for what the engine does not run."""
        if self.speculate is None:
            return None
        found = Speculation.parse(self.speculate)
        if found.has_layer or found.accepted is not None:
            raise UserError(
                f"`speculate` {self.speculate}: the engine runs ngram:N, N drafts a step; "
                "the others are known to predictions and dry runs only"
            )
        return found
