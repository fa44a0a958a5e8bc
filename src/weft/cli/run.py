"""``weft run``: generate with a model under a layout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat, print_rows, progress
from weft.closed_form.schedule import check_length
from weft.engine.request import SamplingParams
from weft.errors import UserError, WorkloadError
from weft.vocabulary.model_source import runnable_model
from weft.vocabulary.workload import Workload

if TYPE_CHECKING:
    from weft.engine.llm import LLM
    from weft.engine.request import Completion, Request


def run(
    *,
    context: typer.Context,
    model: options.Model = "embedded",
    text: Annotated[list[str] | None, "Prompt text; may be given several times."] = None,
    ids: Annotated[list[str] | None, "Prompt as token ids: 1,2,3; may be repeated."] = None,
    sizes: options.SizeOptions,
    degrees: options.LayoutOptions,
    place: ranks.RankOptions,
    temperature: Annotated[float, "0 is greedy."] = 0.0,
    top_k: Annotated[int, "Keep the k likeliest tokens; 0 keeps all."] = 0,
    top_p: Annotated[float, "Keep the likeliest tokens up to this sum."] = 1.0,
    ignore_eos: Annotated[bool, "Go on after an end-of-text token."] = False,
    stop_id: Annotated[list[int] | None, "Token id that ends a request; may be repeated."] = None,
    how: ranks.EngineOptions,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Generate with MODEL on a layout; starts its own ranks, or joins torchrun's or srun's.

    Example: weft run embedded --tp 2 --text "Hello" --decode 32
    """
    layout = degrees.on(place.nnodes)
    spec = runnable_model(model).spec
    layout.check_model(spec)
    load = sizes.of("paper")
    if text or ids:
        _refuse_sizes(prompt=sizes.prompt, batch=sizes.batch)
    else:
        check_length(spec, load)
    prompts = _prompts(text, ids, load, how.seed, spec.vocab_size)

    sampling = SamplingParams(
        max_tokens=load.decode_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        ignore_eos=ignore_eos,
        stop_token_ids=tuple(stop_id or ()),
    )
    sampling.check_vocabulary(spec.vocab_size)
    config = how.config()

    def work() -> None:
        from weft.engine.llm import LLM

        with LLM(model, layout, device=place.device, timeout_s=place.timeout, **config) as llm:
            _generate(llm, prompts, sampling, output_format)

    place.start(context, layout, work)


def _refuse_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None:
            raise UserError(
                f"--{name} {value}: is about made-up prompts; leave it out with --text and --ids"
            )


def _prompts(
    text: list[str] | None, ids: list[str] | None, load: Workload, seed: int, vocab_size: int
) -> list[str | list[int]]:
    prompts: list[str | list[int]] = [*(text or []), *map(_token_ids, ids or [])]
    return prompts or [*load.made_up_prompts(seed, vocab_size)]


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise WorkloadError(f"--ids {text!r}: write numbers separated by commas") from None


def _generate(
    llm: LLM, prompts: list[str | list[int]], sampling: SamplingParams, output_format: OutputFormat
) -> None:
    is_first = llm.groups.rank == 0
    started = time.perf_counter()
    first_token_s: list[float] = []
    with progress() as bar:
        task = bar.add_task("tokens", total=len(prompts) * sampling.max_tokens, visible=is_first)

        def advance(requests: list[Request]) -> None:
            if not first_token_s:
                first_token_s.append(time.perf_counter() - started)
            bar.advance(task, len(requests))

        completions = llm.generate(prompts, sampling, on_step=advance)
    elapsed_s = time.perf_counter() - started
    if is_first:
        _print(llm, completions, elapsed_s, first_token_s[0], output_format)


def _print(
    llm: LLM,
    completions: list[Completion],
    elapsed_s: float,
    ttft_s: float,
    output_format: OutputFormat,
) -> None:
    rows = [
        {
            "request": index,
            "prompt_tokens": len(done.prompt_token_ids),
            "output_tokens": len(done.token_ids),
            "finish": done.finish_reason,
            "text": None if done.text is None else done.text.encode("unicode_escape").decode()[:60],
        }
        for index, done in enumerate(completions)
    ]
    longest = max(len(done.token_ids) for done in completions)
    layout, scheduler = llm.groups.layout, llm.engine.scheduler
    times = {
        "layout": layout.name,
        "e2e_ms": elapsed_s * 1e3,
        "ttft_ms": ttft_s * 1e3,
        "tpot_ms": (elapsed_s - ttft_s) * 1e3 / (longest - 1) if longest > 1 else None,
    }
    document = (
        {"schema": "weft.run/1"}
        | times
        | {
            "completions": [
                {"token_ids": list(d.token_ids), "text": d.text, "finish_reason": d.finish_reason}
                for d in completions
            ]
        }
    )
    if scheduler.num_drafted:  # of the first replica
        document["drafts"] = {"asked": scheduler.num_drafted, "right": scheduler.num_accepted}
    print_rows(rows, output_format, document=document)
    if output_format is OutputFormat.TABLE:
        tpot = "-" if times["tpot_ms"] is None else f"{times['tpot_ms']:.2f} ms"
        print(
            f"layout {layout.name}: E2E {elapsed_s * 1e3:.1f} ms, "
            f"TTFT {ttft_s * 1e3:.1f} ms, TPOT {tpot}"
        )
        if scheduler.num_drafted:
            print(f"drafts: {scheduler.num_accepted} of {scheduler.num_drafted} were right")
