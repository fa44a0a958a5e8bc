"""The parts of a Kineto trace that weft reads, decoded by msgspec; everything else is skipped."""

from __future__ import annotations

from typing import Any, Final

import msgspec


class Event(msgspec.Struct, gc=False):
    """One entry of ``traceEvents``; times in microseconds, ``args`` still undecoded."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    tid: msgspec.Raw = msgspec.Raw(b"")
    ts: float = 0.0
    dur: float = 0.0
    args: msgspec.Raw = msgspec.Raw(b"")


class Args(msgspec.Struct, gc=False, rename=None):
    """The arguments of an event of interest, of any type: who uses one checks it."""

    external_id: Any = msgspec.field(default=None, name="External id")
    function_id: Any = msgspec.field(default=None, name="Record function id")
    correlation: Any = None
    collective: Any = msgspec.field(default=None, name="Collective name")
    in_elements: Any = msgspec.field(default=None, name="In msg nelems")
    out_elements: Any = msgspec.field(default=None, name="Out msg nelems")
    dtype: Any = None
    group_name: Any = msgspec.field(default=None, name="Process Group Name")
    group_description: Any = msgspec.field(default=None, name="Process Group Description")
    group_ranks: Any = msgspec.field(default=None, name="Process Group Ranks")
    group_size: Any = msgspec.field(default=None, name="Group size")
    group_start: Any = msgspec.field(default=None, name="Global rank start")
    group_stride: Any = msgspec.field(default=None, name="Global rank stride")
    source: Any = msgspec.field(default=None, name="Src Rank")
    destination: Any = msgspec.field(default=None, name="Dst Rank")
    dims: Any = msgspec.field(default=None, name="Input Dims")
    types: Any = msgspec.field(default=None, name="Input type")
    out_dims: Any = msgspec.field(default=None, name="Output Dims")


_ARGS_DECODER: Final = msgspec.json.Decoder(Args)


def decode_args(raw: msgspec.Raw) -> Args:
    """The arguments of an event; an event whose arguments are no JSON object has none."""
    try:
        args = _ARGS_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Args()
    args.external_id = _identity(args.external_id)
    args.correlation = _identity(args.correlation)
    args.function_id = _identity(args.function_id)
    return args


def _identity(value: Any) -> int | str | None:
    return value if isinstance(value, int | str) else None


# Spellings of element types: c10 scalar types (record_param_comms) and C++ names (Input type).
_DTYPES: Final = {
    "bfloat16": "bfloat16",
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "byte": "uint8",
    "char": "int8",
    "bool": "bool",
    "float8_e4m3fn": "float8_e4m3fn",
    "long int": "int64",
    "short int": "int16",
    "unsigned char": "uint8",
    "signed char": "int8",
}


def dtype_name(text: Any) -> str | None:
    """A torch dtype name without ``torch.``; None for what is no element type weft knows."""
    if not isinstance(text, str):
        return None
    return _DTYPES.get(text.removeprefix("c10::").lower())
