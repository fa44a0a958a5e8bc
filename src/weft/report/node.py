"""Reading JSON documents from outside with checks: a wrong field is one clear line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from weft.errors import FileFormatError
from weft.report.blocks import Cell

_LARGEST: Final = 1e18


class Node:
    """A JSON value and the place where it stands, e.g. ``study.json: layouts[2].tpot_ms``."""

    def __init__(self, value: Any, place: str, *, is_root: bool = True) -> None:
        self.value, self.place = value, place
        self._separator = ": field " if is_root else "."

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, Mapping) and self.value.get(key) is not None

    def wrong(self, wanted: str) -> FileFormatError:
        return FileFormatError(f"{self.place} is {_short(self.value)}, must be {wanted}")

    def child(self, key: str) -> Node:
        """The value of ``key``; a missing one is null."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        return Node(
            self.value.get(key), f"{self.place}{self._separator}{_shown(key)}", is_root=False
        )

    def __getitem__(self, path: str) -> Node:
        """``node["requests.failed"]``: the value below names that have no dot in them."""
        found = self
        for key in path.split("."):
            found = found.child(key)
        return found

    def items(self) -> Iterator[tuple[str, Node]]:
        """The pairs of an object; null has none."""
        if self.value is None:
            return
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        for key in self.value:
            yield key, self.child(key)

    def elements(self) -> list[Node]:
        """The elements of a list; null has none."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [
            Node(value, f"{self.place}[{i}]", is_root=False) for i, value in enumerate(self.value)
        ]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def number(self) -> float:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong("a number")
        if not abs(value) <= _LARGEST:
            raise self.wrong(f"a finite number of at most {_LARGEST:g}")
        return value

    def integer(self) -> int:
        value = self.number()
        if not isinstance(value, int):
            raise self.wrong("an integer")
        return value

    def optional_number(self) -> float | None:
        return None if self.value is None else self.number()

    def optional_integer(self) -> int | None:
        return None if self.value is None else self.integer()

    def numbers(self) -> dict[str, float]:
        """An object whose values are numbers."""
        return {key: node.number() for key, node in self.items()}

    def cells(self, *names: str) -> dict[str, Cell]:
        """The values of an object as they stand in a table: of these names, or all."""
        chosen = names or (key for key, _ in self.items())
        return {name: self.child(name).cell() for name in chosen}

    def cell(self) -> Cell:
        """Any value as it stands in a table: lists and objects as compact JSON."""
        if isinstance(self.value, list | Mapping):
            return json.dumps(self.value) if self.value else None
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            return self.number()
        return self.value  # type: ignore[no-any-return]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown(key: str) -> str:
    return key if key.isidentifier() and len(key) <= 60 else _short(key)


def read_document(path: Path) -> Node:
    """The JSON object in ``path``; FileFormatError where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file") from None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not a JSON document ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: holds a JSON {type(value).__name__}, must be an object")
    return Node(value, str(path))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__
