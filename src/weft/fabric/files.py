"""Fabric files: JSON, one fabric a file (format ``weft.fabric/1``); unknown keys are errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from weft.errors import FileFormatError
from weft.fabric.builtin import BUILTIN_FABRICS
from weft.fabric.fabric import Fabric, MeasuredTable, Tier
from weft.vocabulary.files import write_file

SCHEMA: Final = "weft.fabric/1"

T = TypeVar("T")


def load(name_or_path: str | Path) -> Fabric:
    """A built-in fabric by name, or one from a file.

    Raises FileFormatError for an unknown name and for a missing or damaged file.
    """
    builtin = BUILTIN_FABRICS.get(str(name_or_path))
    return builtin if builtin is not None else load_file(Path(name_or_path))


def load_file(path: Path) -> Fabric:
    """Read one fabric file; FileFormatError names the file and what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(BUILTIN_FABRICS)
        raise FileFormatError(
            f"fabric {path}: no such file or built-in name; built in are {names}; "
            "`weft calibrate` measures this machine"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"fabric file {path} cannot be read: {error}") from None
    try:
        return from_json(document)
    except FileFormatError as error:
        raise FileFormatError(f"fabric file {path}: {error}") from None


def from_json(document: Any) -> Fabric:
    """The fabric that a ``weft.fabric/1`` object describes."""
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise FileFormatError(f"is not a fabric file (schema is not {SCHEMA!r})")
    values = {key: value for key, value in document.items() if key != "schema"}
    for tier in ("intra", "inter"):
        values[tier] = _build(Tier, values.get(tier), tier)
    tables = values.get("tables", [])
    if not isinstance(tables, list):
        raise FileFormatError("'tables' must be a list")
    values["tables"] = tuple(_table(table) for table in tables)
    return _build(Fabric, values, "fabric")


def to_json(fabric: Fabric) -> dict[str, Any]:
    """The ``weft.fabric/1`` object of a fabric."""
    return {"schema": SCHEMA} | asdict(fabric)


def save(fabric: Fabric, path: Path) -> None:
    """Write a fabric file (whole or not at all)."""
    write_file(path, to_json(fabric))


def _table(document: Any) -> MeasuredTable:
    if isinstance(document, Mapping):
        lists = {key: document.get(key) for key in ("bytes", "latency_us")}
        for key, value in lists.items():
            if not isinstance(value, list) or not all(_is_number(item) for item in value):
                raise FileFormatError(f"table: {key!r} must be a list of numbers")
        document = dict(document) | {key: tuple(value or ()) for key, value in lists.items()}
    return _build(MeasuredTable, document, "table")


def _build(kind: type[T], values: Any, what: str) -> T:
    if not isinstance(values, Mapping):
        raise FileFormatError(f"{what!r} must be an object")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    missing = [
        name
        for name, item in known.items()
        if item.default is MISSING and item.default_factory is MISSING and name not in values
    ]
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"missing key {missing[0]!r}"
        raise FileFormatError(f"{what}: {problem}")
    for name, value in values.items():
        _check_type(what, name, str(known[name].type), value)
    return kind(**values)


def _check_type(what: str, name: str, annotation: str, value: Any) -> None:
    fits = {
        "float": _is_number(value),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "int | None": value is None or (isinstance(value, int) and not isinstance(value, bool)),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "Mapping[str, str] | None": value is None or isinstance(value, Mapping),
    }
    if not fits.get(annotation, True):
        raise FileFormatError(f"{what}: {name} is {value!r}, must be {annotation}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
