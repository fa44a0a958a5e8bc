"""Commands whose first word may be a sub-command or an argument of the command itself.

``weft predict MODEL`` and ``weft predict scoreboard`` live under one name this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import typer
from typer.core import TyperGroup

from weft.cli.option_groups import grouped

DEFAULT: Final = "default command"


class _DefaultGroup(TyperGroup):
    """A group that runs its default command where the first word is no sub-command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands or args[0] == DEFAULT:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == DEFAULT else name), command, rest


def app_with_default(
    default: Callable[..., Any], commands: Mapping[str, Callable[..., Any]], *, epilog: str
) -> typer.Typer:
    """A Typer app of ``commands`` that runs ``default`` for anything else.

    ``epilog`` ends the default command's help and should name the others.
    """
    app = typer.Typer(cls=_DefaultGroup, rich_markup_mode=None)
    app.command(DEFAULT, hidden=True, epilog=epilog)(grouped(default))
    for name, command in commands.items():
        app.command(name)(grouped(command))
    return app
