"""BenchResult: what a measurement gave, as its command's JSON has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BenchResult:
    """The document of a measurement; docs/formats.md says what is in it."""

    document: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its table; bytes, µs, ms and GB/s as the columns' names say."""
        found: list[dict[str, Any]] = self.document["rows"]
        return found

    def to_dict(self) -> dict[str, Any]:
        return dict(self.document)
