"""Checks that the dataclasses of the vocabulary share."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from weft.errors import UserError


def check_counts(owner: Any, names: Iterable[str], error: type[UserError]) -> None:
    """Raise ``error`` unless each named field of ``owner`` is a whole number above 0."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise error(f"`{name}` {value!r}: must be a whole number of at least 1")
