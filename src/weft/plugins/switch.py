"""The one switch of the plugins: WEFT_ALL_REDUCE."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Final

VARIABLE: Final = "WEFT_ALL_REDUCE"
OFF: Final = ("", "0")
ON: Final = "1"
INSIST: Final = "insist"

Version = tuple[int, int]

log = logging.getLogger("weft")


def is_on(engine: str, packages: Sequence[str], oldest: Version, newest: Version) -> bool:
    """Whether the plugin of ``engine`` shall do anything; says once why not, if it was asked.

    packages: names under which the engine is installed; oldest, newest: the versions tried.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice in OFF:
        return False
    reason = refusal(choice, engine, installed(packages), oldest, newest)
    if reason is not None:
        log.warning("%s", reason)
    return reason is None


def refusal(
    choice: str, engine: str, version: str | None, oldest: Version, newest: Version
) -> str | None:
    """Why a plugin that was asked for stays off, or None."""
    if choice not in (ON, INSIST):
        return f"{VARIABLE}={choice}: write 1 (on), 0 (off) or {INSIST}; weft stays off"
    if version is None:
        return (
            f"{engine} has no version that weft can read; {VARIABLE}={INSIST} uses it all the same"
        )
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if choice == ON and not (numbers and oldest <= (int(numbers[1]), int(numbers[2])) <= newest):
        return (
            f"{engine} {version}: weft was tried with {_dotted(oldest)} to {_dotted(newest)} and "
            f"stays off; {VARIABLE}={INSIST} uses it all the same"
        )
    return None


def guarded(part: str, install: Callable[[], None]) -> None:
    """Install one part of a plugin; an engine that has changed there goes on without it."""
    try:
        install()
    except Exception as error:  # noqa: BLE001 - an engine's start never fails because of weft
        log.warning("weft: %s stays the engine's own (%s: %s)", part, type(error).__name__, error)


def installed(packages: Sequence[str]) -> str | None:
    """The version of the first of the packages that is installed."""
    for name in packages:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
