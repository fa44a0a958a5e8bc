"""The fabric of this machine: what ``weft calibrate`` left, or what WEFT_FABRIC names."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Final

from weft.fabric.fabric import Fabric
from weft.fabric.files import load
from weft.fabric.fingerprint import describe, fingerprint

VARIABLE: Final = "WEFT_FABRIC"


class ForeignFabricWarning(UserWarning):
    """A fabric file that was measured on another machine."""


def default_path() -> Path:
    """Where ``weft calibrate`` writes unless told otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "weft" / "fabric.json"


def local_fabric() -> Fabric | None:
    """The fabric that ``algorithm="auto"`` reads; None where nothing was calibrated.

    Raises FileFormatError for a missing or damaged file that WEFT_FABRIC names.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return checked(load(named))
    path = default_path()
    return checked(load(path)) if path.is_file() else None


def checked(fabric: Fabric) -> Fabric:
    """``fabric``, with a ForeignFabricWarning where it was measured on another machine."""
    here = fingerprint()
    if fabric.fingerprint is not None and dict(fabric.fingerprint) != here:
        there = describe(dict(fabric.fingerprint))
        warnings.warn(
            f"fabric {fabric.name} was measured on another machine ({there}) than this one "
            f"({describe(here)}); run `weft calibrate` here",
            ForeignFabricWarning,
            stacklevel=2,
        )
    return fabric
