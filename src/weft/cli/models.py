"""``weft models``: the built-in models, or one model's shape."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows
from weft.vocabulary.builtin_models import BUILTIN_MODELS
from weft.vocabulary.layout import valid_tp
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.model_spec import ModelSpec


def models(
    name: Annotated[
        str | None, typer.Argument(help="One model (name, directory or hub id); all if left out.")
    ] = None,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """List the built-in models, or show one model's shape.

    Example: weft models llama-3.1-8b
    """
    specs = list(BUILTIN_MODELS.values()) if name is None else [load_spec(name)]
    document = [asdict(spec) | {"num_parameters": spec.num_parameters} for spec in specs]
    print_rows([_row(spec) for spec in specs], output_format, document=document)


def _row(spec: ModelSpec) -> dict[str, Any]:
    return {
        "model": spec.name,
        "family": spec.family,
        "parameters": f"{spec.num_parameters / 1e9:.2f}B",
        "layers": spec.num_layers,
        "hidden": spec.hidden_size,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "intermediate": spec.intermediate_size,
        "vocab": spec.vocab_size,
        "experts": spec.num_experts,
        "dtype": spec.dtype,
        "tp": ",".join(map(str, valid_tp(spec))),
    }
