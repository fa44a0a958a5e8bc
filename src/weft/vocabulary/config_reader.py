"""Typed access to a ``config.json``: what it leaves out is what its family says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any, Final

from weft.errors import ModelConfigError

_MOST: Final = 10**9


class ConfigReader:
    """Values by key, with errors that name the model and the field.

    A key that is left out has its default; a key that is null is null.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        defaults: Mapping[str, Any],
        aliases: Mapping[str, str],
    ) -> None:
        self.name, self._values = name, dict(defaults)
        seen: dict[str, Any] = {}
        for key, value in config.items():
            true_key = aliases.get(key, key)
            if true_key in seen and seen[true_key] != value:
                raise self.error(f"fields {key!r} and {true_key!r} mean the same and differ")
            seen[true_key] = value
        self._values |= seen

    def error(self, message: str) -> ModelConfigError:
        return ModelConfigError(f"model {self.name}: {message}")

    def within(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> ConfigReader:
        """A reader of an object inside this one."""
        return ConfigReader(self.name, config, defaults, {})

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def integer(self, key: str, *, least: int = 1) -> int:
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._missing_or_wrong(key, "an integer")
        if value < least:
            raise self.error(f"field {key!r} is {value}, must be at least {least}")
        if value > _MOST:
            raise self.error(f"field {key!r} is {short(value)}, must be at most {_MOST}")
        return value

    def optional_integer(self, key: str) -> int | None:
        return self.integer(key) if self.has(key) else None

    def number(self, key: str, *, least: float = -math.inf) -> float:
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._missing_or_wrong(key, "a number")
        if not least <= value <= 1e300:
            raise self.error(f"field {key!r} is {value!r}, must be finite and at least {least:g}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"field {key!r} is {value!r}, must be true or false")
        return bool(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(f"field {key!r} is {value!r}, must be an object")
        return value or {}

    def items(self, key: str) -> Sequence[Any]:
        value = self._values.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise self.error(f"field {key!r} is {value!r}, must be a list")
        return value or ()

    def choice(self, key: str, choices: Mapping[str, str]) -> str:
        """The value under which ``choices`` lists the field."""
        value = self._values.get(key)
        if not isinstance(value, str) or value not in choices:
            raise self.error(
                f"{key} {value!r} is not supported; weft has {', '.join(dict.fromkeys(choices))}"
            )
        return choices[value]

    def refuse(self, *keys: str) -> None:
        """Refuse fields that are set to anything but null, false or nothing."""
        for key in keys:
            if self._values.get(key):
                raise self.error(f"{key} {self._values[key]!r} is not supported; leave it out")

    def _missing_or_wrong(self, key: str, what: str) -> ModelConfigError:
        if key not in self._values:
            return self.error(f"config.json has no field {key!r}")
        return self.error(f"field {key!r} is {self._values[key]!r}, must be {what}")
