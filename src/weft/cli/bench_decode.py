"""``weft bench decode``: time to first token and per token, beside the memory roofline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat, check_file, print_rows
from weft.engine.config import EngineConfig
from weft.errors import UserError
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec, runnable_model

if TYPE_CHECKING:
    from weft.bench.decode import DecodeCase


def bench_decode(
    *,
    context: typer.Context,
    model: options.Model = "llama-3.1-8b",
    case: Annotated[
        list[str] | None, typer.Option(help="BATCHxPROMPT; may be repeated [1x128].")
    ] = None,
    decode: Annotated[int, typer.Option(help="Generated tokens; the first is TTFT's.")] = 129,
    repeats: Annotated[int, typer.Option(help="The best of so many runs counts.")] = 3,
    degrees: options.LayoutOptions,
    place: ranks.RankOptions,
    weights: Annotated[str, typer.Option(help="dummy, or auto (the checkpoint's).")] = "dummy",
    weights_dtype: ranks.WeightsDtype = None,
    all_reduce: ranks.AllReduce = "auto",
    graphs: Annotated[bool, typer.Option(help="Decode steps as CUDA graphs.")] = True,
    overlap: Annotated[bool | None, typer.Option(help="Read ids one step late.")] = None,
    profile: Annotated[bool, typer.Option(help="Also list one step's kernels.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the JSON result here.", callback=check_file),
    ] = None,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Time the engine: TTFT is the time of one token, TPOT that of the others.

    Example: weft bench decode llama-3.1-8b --tp 4 --case 1x128 --case 32x1024
    """
    layout = degrees.on(place.nnodes)
    layout.check_model(runnable_model(model).spec)
    ranks.check_all_reduce(all_reduce)
    if layout.dp > 1:
        raise UserError(f"--dp {layout.dp}: replicas step independently; measure one of them")
    if decode < 2:
        raise UserError(f"--decode {decode}: TPOT needs at least 2 tokens")
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: must be at least 1")
    EngineConfig(weights=weights, weights_dtype=weights_dtype)  # type: ignore[arg-type]  # checks

    def work() -> None:
        from weft.bench.decode import DecodeCase

        cases = [DecodeCase.parse(text) for text in case or ["1x128"]]
        config = {
            "weights": weights,
            "weights_dtype": weights_dtype,
            "all_reduce": all_reduce,
            "graphs": graphs and None,
            "overlap": overlap,
        }
        result = _measure(model, layout, cases, decode, repeats, profile, place, config)
        if result is not None:
            if output is not None:
                write_file(output, result)
            _print(result, output_format)

    place.start(context, layout, work)


def _measure(
    model: str,
    layout: Layout,
    cases: list[DecodeCase],
    decode: int,
    repeats: int,
    with_profile: bool,
    place: ranks.RankOptions,
    config: dict[str, Any],
) -> dict[str, Any] | None:
    """The result document on the first rank, None on others."""
    from weft.bench import decode as bench
    from weft.engine.llm import LLM

    bench.check_cases(cases, decode, load_spec(model))
    config |= bench.limits_for(cases, decode, layout) | {"prefix_caching": False}
    with LLM(model, layout, device=place.device, timeout_s=place.timeout, **config) as llm:
        copy_gb_s = bench.copy_bandwidth_gb_s(llm.groups.device)
        results, profiles = [], {}
        for one in cases:
            results.append(
                bench.measure(llm, one, decode_tokens=decode, repeats=repeats, copy_gb_s=copy_gb_s)
            )
            if with_profile:
                profiles[one.name] = bench.profile(llm, one)
        if llm.groups.rank:
            return None
        return bench.document(results, llm, copy_gb_s) | (
            {"profiles": profiles} if with_profile else {}
        )


def _print(result: dict[str, Any], output_format: OutputFormat) -> None:
    print_rows(result["rows"], output_format, document=result)
    if output_format is OutputFormat.TABLE:
        for name, rows in result.get("profiles", {}).items():
            print_rows(rows[:20], output_format, title=f"one step of {name}")
