"""Checks that options and parameters make of themselves: types, choices and limits.

The annotation of a dataclass field is what is checked, so that nothing is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from collections.abc import Set as AbstractSet
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from reprlib import repr as short
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from weft.errors import UserError

MOST_SECONDS: Final = 10**6
_KINDS: Final[Mapping[Any, tuple[type, str]]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
    bool: (bool, "True or False"),
    NoneType: (NoneType, "None"),
}


def check_counts(owner: Any, names: Iterable[str], error: type[UserError]) -> None:
    """Raise ``error`` unless each named field of ``owner`` is a whole number above 0."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise error(f"`{name}` {value!r}: must be a whole number of at least 1")


def check_types(options: Any, error: type[UserError] = UserError) -> None:
    """Raise ``error`` naming the first field of a dataclass whose value its annotation forbids.

    Understands int, float (never NaN), bool, str, None, classes, Literal, tuple[X, ...] and unions.
    """
    for name, hint in _hints(options.__class__).items():
        value = getattr(options, name)
        if not _fits(value, hint):
            raise error(f"`{name}` {short(value)}: must be {_described(hint)}")


def check_limits(
    options: Any, least: Mapping[str, float], error: type[UserError] = UserError
) -> None:
    """Raise ``error`` for the first field that is below its least value; None is let through."""
    for name, limit in least.items():
        value = getattr(options, name)
        if value is not None and value < limit:
            raise error(f"`{name}` {value}: must be at least {limit}")


def check_between(
    options: Any, bounds: Mapping[str, tuple[float, float]], error: type[UserError] = UserError
) -> None:
    """Raise ``error`` for the first field outside (least, most); None is let through."""
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise error(f"`{name}` {value}: must be {least} to {most}")


def check_seconds(name: str, value: Any) -> None:
    """Raise UserError unless ``value`` is a time that one can wait for (s)."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= MOST_SECONDS
    ):
        raise UserError(
            f"`{name}` {value!r}: must be a positive number of seconds, at most {MOST_SECONDS}"
        )


def is_list(value: Any) -> bool:
    """Whether this is things in an order (list, tuple, array), and neither text nor bytes."""
    return isinstance(value, Sized) and not isinstance(
        value, str | bytes | bytearray | memoryview | AbstractSet | Mapping
    )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(one, parts[0]) for one in value)
    kind, _ = _kind(hint)
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, kind):
        return False
    return hint is not float or abs(value) <= math.inf  # type: ignore[arg-type]


def _kind(hint: Any) -> tuple[type, str]:
    return _KINDS.get(hint) or (hint, f"a {hint.__name__}")


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_described(part) for part in parts)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin is tuple:
        return f"a tuple, each {_described(parts[0])}"
    return _kind(hint)[1]
