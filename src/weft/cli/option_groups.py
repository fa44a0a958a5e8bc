"""A command's options: ``Annotated[int, "What it is."]``, alone or as a field of a dataclass of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with the options of its dataclasses in their place, for typer."""
    groups: dict[str, Any] = {}
    options: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            options |= {option.name: option for option in _options_of(parameter.annotation)}
        else:
            hint = _for_typer(parameter.name, parameter.annotation)
            options[parameter.name] = parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint
            )

    @wraps(command)
    def call(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{one.name: values.pop(one.name) for one in fields(group)})
        return command(**values)

    call.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: option.annotation for name, option in options.items()}
    return call


def _options_of(group: Any) -> list[inspect.Parameter]:
    """Fields with a sentence for typer, or for everybody: ``Annotated[int, "What it is."]``.

    After the sentence stand the option that turns a bool off, or the environment variable.
    """
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=_for_typer(one.name, hints[one.name]),
        )
        for one in fields(group)
    ]


def _for_typer(name: str, hint: Any) -> Any:
    kind, help_text, *more = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    if not isinstance(help_text, str):
        return hint
    names, variable = [], None
    for text in more:
        if text.startswith("--"):
            names = [f"--{name.replace('_', '-')}/{text}"]
        else:
            variable = text
    return Annotated[kind, typer.Option(*names, help=help_text, envvar=variable)]
