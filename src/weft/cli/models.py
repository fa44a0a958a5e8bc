"""``weft models``: the built-in models, or one model's shape."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.families import BUILTIN_MODELS
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
    document = [asdict(spec) | _derived(spec) for spec in specs]
    print_rows([_row(spec) for spec in specs], output_format, document=document)


def _derived(spec: ModelSpec) -> dict[str, Any]:
    """What follows from the shape: elements, and bytes of a whole model in one place."""
    layers, size = range(spec.num_layers), element_bytes(spec.dtype)
    return {
        "num_parameters": spec.num_parameters,
        "weight_bytes": round(spec.weight_bytes),
        "cache_bytes_per_token": spec.cache_elements(layers, 1) * size,
        "state_bytes_per_sequence": spec.state_bytes(layers, 1),
    }


def _row(spec: ModelSpec) -> dict[str, Any]:
    derived = _derived(spec)
    return {
        "model": spec.name,
        "family": spec.family,
        "parameters": f"{spec.num_parameters / 1e9:.2f}B",
        "weights": "+".join(spec.format_names),
        "gb": f"{spec.weight_bytes / 1e9:.1f}",
        "cache/token": derived["cache_bytes_per_token"],
        "state/seq": derived["state_bytes_per_sequence"],
        "layers": spec.num_layers,
        "hidden": spec.hidden_size,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab": spec.vocab_size,
        "experts": spec.num_experts,
        "tp": ",".join(map(str, valid_tp(spec))),
    }
