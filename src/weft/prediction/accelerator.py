"""Accelerators: what one device computes and moves, each number with its source.

A file (``weft.accelerator/1``) holds the same fields; ``weft calibrate`` writes one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from weft.errors import FileFormatError
from weft.prediction.quantity import Quantity

SCHEMA: Final = "weft.accelerator/1"

BUILTIN_ACCELERATORS: Final = ("h200-sxm",)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device.

    memory_gb: capacity in 1e9 bytes. matmul_tflops: sustained rate of a large 16-bit
    matrix product; matmul8_tflops the same in 8 bits (0 = none; 16 bits are used).
    stream_gb_s: read rate of a matrix product with few rows; cache_gb_s: read rate of
    decode attention over its KV cache; copy_gb_s: bytes read plus written by elementwise
    kernels. attention_tflops: prefill attention over a long context; attention_ramp_tokens:
    context at which it reaches half of that. ``*_call_us``: fixed device time of one kernel
    of that kind inside a CUDA graph. launch_us: host time of launching one kernel outside a
    graph; host_step_us: host time of one step's bookkeeping (inputs in, sampled ids out).
    """

    name: str
    memory_gb: Quantity
    matmul_tflops: Quantity
    matmul8_tflops: Quantity
    stream_gb_s: Quantity
    cache_gb_s: Quantity
    copy_gb_s: Quantity
    attention_tflops: Quantity
    attention_ramp_tokens: Quantity
    matmul_call_us: Quantity
    attention_call_us: Quantity
    elementwise_call_us: Quantity
    launch_us: Quantity
    host_step_us: Quantity

    def quantities(self) -> dict[str, Quantity]:
        """Every number by name, for reports of provenance."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}


_POSITIVE: Final = {
    "memory_gb",
    "matmul_tflops",
    "stream_gb_s",
    "cache_gb_s",
    "copy_gb_s",
    "attention_tflops",
}


def load_accelerator(name_or_path: str) -> Accelerator:
    """A built-in accelerator by name, or one from a file.

    Raises FileFormatError for an unknown name and for a missing or damaged file.
    """
    from weft.prediction.datasheets import DATA_SHEETS

    if name_or_path in BUILTIN_ACCELERATORS:
        return _builtin(name_or_path)
    if name_or_path in DATA_SHEETS:
        return DATA_SHEETS[name_or_path].accelerator(name_or_path)
    path = Path(name_or_path)
    try:
        return accelerator_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileFormatError(
            f"`accelerator` {name_or_path}: no such file or built-in name; built in are "
            f"{', '.join((*BUILTIN_ACCELERATORS, *DATA_SHEETS))}; `weft calibrate` measures this machine"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, FileFormatError) as error:
        raise FileFormatError(f"accelerator file {name_or_path}: {error}") from None


@cache
def _builtin(name: str) -> Accelerator:
    file = resources.files("weft.prediction") / "data" / "accelerators" / f"{name}.json"
    return accelerator_from_json(json.loads(file.read_text(encoding="utf-8")))


def accelerator_from_json(document: Any) -> Accelerator:
    """The accelerator that a ``weft.accelerator/1`` object describes; unknown keys are errors."""
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise FileFormatError(f"is not an accelerator file (schema is not {SCHEMA!r})")
    names = [field.name for field in fields(Accelerator)]
    odd = sorted(set(document) ^ {"schema", *names})
    if odd:
        raise FileFormatError(f"missing or unknown key {odd[0]!r}")
    quantities = {name: Quantity.from_json(name, document[name]) for name in names[1:]}
    for name in _POSITIVE:
        if quantities[name].value <= 0:
            raise FileFormatError(f"{name}: value must be above 0")
    return Accelerator(name=str(document["name"]), **quantities)


def accelerator_to_json(accelerator: Accelerator) -> dict[str, Any]:
    """The ``weft.accelerator/1`` object of an accelerator."""
    numbers = {
        name: {
            "value": item.value,
            "spread": item.spread,
            "origin": item.origin,
            "source": item.source,
        }
        for name, item in accelerator.quantities().items()
    }
    return {"schema": SCHEMA, "name": accelerator.name, **numbers}
