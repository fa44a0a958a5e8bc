"""Keyword arguments that several functions share, and a line for one that does not exist."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, wraps
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack, get_origin

from weft.errors import LayoutError, UserError
from weft.vocabulary.checks import check_type
from weft.vocabulary.layout import Layout

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
    check_keywords("a layout", degrees, LayoutDegrees.__annotations__)
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


def named_arguments(*more: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of the library: a wrong call is a UserError that names the argument.

    An unknown keyword is told with the nearest, a value of another type with the right one.
    more: the TypedDicts that the function unpacks its keywords to.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        shape = inspect.signature(function)
        known = [name for name, one in shape.parameters.items() if one.kind is not one.VAR_KEYWORD]
        known += [name for kind in more for name in inspect.get_annotations(kind)]
        title = function.__name__

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check_keywords(title, kwargs, known)
            try:
                given = shape.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise UserError(f"{title}: {error}") from None
            hints = _hints(function)
            for name, value in given.items():
                if value is None and shape.parameters[name].default is inspect.Parameter.empty:
                    raise UserError(f"`{name}` None: must be given")
                if name in hints:
                    check_type(name, value, hints[name])
            return function(*args, **kwargs)

        return call

    return decorate


def named_fields(kind: type[T]) -> type[T]:
    """Decorate a dataclass of options: an unknown field is a UserError with the nearest."""
    made: Callable[..., None] = kind.__init__
    known = list(inspect.signature(made).parameters)

    @wraps(made)
    def make(self: T, *args: Any, **kwargs: Any) -> None:
        check_keywords(kind.__name__, kwargs, known)
        made(self, *args, **kwargs)

    kind.__init__ = make  # type: ignore[method-assign,assignment]
    return kind


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations that mean something where the function is; others are checked by what it calls."""
    found = {}
    for name, text in inspect.get_annotations(function).items():
        with suppress(NameError):
            found[name] = eval(text, function.__globals__) if isinstance(text, str) else text  # noqa: S307
    return {name: hint for name, hint in found.items() if get_origin(hint) is not Unpack}
