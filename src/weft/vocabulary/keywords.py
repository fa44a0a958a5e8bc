"""Keyword arguments that several functions share, and a line for one that does not exist."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypedDict, TypeVar

from weft.errors import LayoutError, UserError, WorkloadError
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

P = ParamSpec("P")
R = TypeVar("R")


class LayoutDegrees(TypedDict, total=False):
    """A layout said by its degrees: ``tp=4`` instead of ``layout=Layout(tp=4)``."""

    tp: int
    pp: int
    sp: int
    ep: int
    dp: int
    dcp: int


def layout_of(layout: Layout | None, degrees: LayoutDegrees) -> Layout:
    """The one that is given, or that of the degrees; one rank if nothing is.

    Raises LayoutError where both are given or ``layout`` is none.
    """
    if layout is None:
        return Layout(**degrees)
    if not isinstance(layout, Layout):
        raise LayoutError(f"`layout` {layout!r}: must be a Layout, such as weft.Layout(tp=2)")
    for name, value in degrees.items():
        raise LayoutError(f"`{name}` {value!r}: `layout` has the degrees already; give one of them")
    return layout


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """UserError for the first of ``given`` that ``function`` does not know, with the nearest."""
    names = list(known)
    for name in given:
        if name not in names:
            meant = "".join(f"; did you mean `{one}`?" for one in get_close_matches(name, names, 1))
            raise UserError(f"`{name}`: {function} takes no such argument{meant}")


def _check_workload(given: Mapping[str, object]) -> None:
    load = given.get("workload")
    if load is not None and not isinstance(load, Workload):
        raise WorkloadError(
            f"`workload` {load!r}: must be a Workload, such as weft.Workload(prompt_tokens=128)"
        )


def named_arguments(*more: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of the library: an unknown keyword is a UserError with the nearest.

    more: the TypedDicts that it unpacks its keywords to.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [
            name
            for name, one in inspect.signature(function).parameters.items()
            if one.kind is not one.VAR_KEYWORD
        ]
        known += [name for kind in more for name in inspect.get_annotations(kind)]

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check_keywords(function.__name__, kwargs, known)
            _check_workload(dict(zip(known, args, strict=False)) | kwargs)
            return function(*args, **kwargs)

        return call

    return decorate
