"""``weft bench decode`` as a value: which cases are timed, and how the engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Unpack

from weft.engine.config import EngineConfig
from weft.errors import UserError
from weft.launch.own_ranks import on_ranks
from weft.vocabulary.conventions import check_all_reduce
from weft.vocabulary.keywords import LayoutDegrees, layout_of
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import runnable_model
from weft.vocabulary.result import BenchResult


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """``batch`` prompts of ``prompt_tokens`` tokens."""

    batch: int
    prompt_tokens: int

    @classmethod
    def parse(cls, text: str) -> DecodeCase:
        """Read ``BATCHxPROMPT``: 32x1024."""
        batch, _, prompt = text.partition("x")
        if not (batch.isdigit() and prompt.isdigit() and int(batch) and int(prompt)):
            raise UserError(f"`case` {text}: write it as BATCHxPROMPT, e.g. 32x1024")
        return cls(batch=int(batch), prompt_tokens=int(prompt))

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.prompt_tokens}"


@dataclass(frozen=True, kw_only=True)
class DecodeBench:
    """Time to the first token and per token of the engine, beside what memory allows.

    Example::

        result = weft.DecodeBench(case=["4x32"], decode=9).run("embedded", tp=2)
    """

    case: Annotated[list[str] | None, "BATCHxPROMPT; may be repeated [1x128]."] = None
    decode: Annotated[int, "Generated tokens; the first is TTFT's."] = 129
    repeats: Annotated[int, "The best of so many runs counts."] = 3
    weights: Annotated[str, "dummy, or auto (the checkpoint's)."] = "dummy"
    weights_dtype: Annotated[
        str | None, "float8_e4m3fn: round the layers' matrices while loading."
    ] = None
    all_reduce: Annotated[
        str, "auto (weft's where it can be used), weft or library (nccl's, gloo's)."
    ] = "auto"
    graphs: Annotated[bool, "Decode steps as CUDA graphs."] = True
    overlap: Annotated[bool | None, "Read ids one step late."] = None
    profile: Annotated[bool, "Also list one step's kernels."] = False

    def __post_init__(self) -> None:
        check_all_reduce(self.all_reduce)
        if self.decode < 2:
            raise UserError(f"`decode` {self.decode}: TPOT needs at least 2 tokens")
        if self.repeats < 1:
            raise UserError(f"`repeats` {self.repeats}: must be at least 1")
        EngineConfig(**self._config())
        _ = self.cases

    @property
    def cases(self) -> list[DecodeCase]:
        return [DecodeCase.parse(text) for text in self.case or ["1x128"]]

    def _config(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "weights_dtype": self.weights_dtype,
            "graphs": self.graphs and None,
            "overlap": self.overlap,
            "prefix_caching": False,
        }

    def check(self, model: str, layout: Layout) -> None:
        """UserError where the model cannot be run on the layout or is too short for a case."""
        spec = runnable_model(model).spec
        layout.check_model(spec)
        for case in self.cases:
            if case.prompt_tokens + self.decode > spec.max_position:
                raise UserError(
                    f"`case` {case.name}: {case.prompt_tokens} + {self.decode} (`decode`) tokens "
                    f"are more than the {spec.max_position} positions of {spec.name}"
                )
        if layout.dp > 1:
            raise UserError(f"`dp` {layout.dp}: replicas step independently; measure one of them")

    def run(
        self,
        model: str = "llama-3.1-8b",
        layout: Layout | None = None,
        *,
        device: str = "auto",
        timeout_s: float = 120.0,
        **degrees: Unpack[LayoutDegrees],
    ) -> BenchResult:
        """Measure on ranks that are started here, or that a launcher started."""
        from weft.bench.decode import run_cases

        shape = layout_of(layout, degrees)
        self.check(model, shape)
        place = {"device": device, "timeout_s": timeout_s, "all_reduce": self.all_reduce}
        return BenchResult(
            on_ranks(shape.world_size, run_cases, self, model, shape, self._config() | place)
        )
