"""``weft predict``: what a layout sends, in closed form."""

from __future__ import annotations

from weft.cli import options
from weft.cli.output import OutputFormat
from weft.cli.schedule_output import print_schedule
from weft.closed_form.schedule import closed_form
from weft.vocabulary.model_source import load_spec


def predict(
    model: options.Model,
    tp: options.Tp = 1,
    pp: options.Pp = 1,
    sp: options.Sp = 1,
    ep: options.Ep = 1,
    dp: options.Dp = 1,
    nodes: options.Nodes = 1,
    stage_layers: options.StageLayers = None,
    workload: options.WorkloadName = "paper",
    prompt: options.Prompt = None,
    decode: options.Decode = None,
    batch: options.Batch = None,
    engine: options.Engine = "weft",
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Print the schedule of collectives of one request in closed form.

    Example: weft predict llama-2-13b --tp 4 --prompt 128 --decode 128 --engine vllm-v0
    """
    layout = options.make_layout(
        tp=tp, pp=pp, sp=sp, ep=ep, dp=dp, nodes=nodes, stage_layers=stage_layers
    )
    load = options.make_workload(workload, prompt, decode, batch)
    print_schedule(closed_form(load_spec(model), layout, load, engine), output_format)
