"""Element types by name, without importing torch."""

from __future__ import annotations

from typing import Final

ELEMENT_BYTES: Final = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "uint8": 1,
    "int8": 1,
    "bool": 1,
    "float8_e4m3fn": 1,
}

MODEL_DTYPES: Final = ("bfloat16", "float16", "float32", "float64")


def element_bytes(dtype: str) -> int:
    """Bytes of one element of ``dtype`` (a torch dtype name without ``torch.``)."""
    return ELEMENT_BYTES[dtype]
