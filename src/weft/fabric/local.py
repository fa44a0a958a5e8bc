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


def default_path(device: str = "cpu") -> Path:
    """Where ``weft calibrate`` writes unless told otherwise; device: "cpu" or "cuda"."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "weft" / ("fabric.json" if device == "cpu" else f"fabric-{device}.json")


def local_fabric() -> Fabric | None:
    """The fabric that ``algorithm="auto"`` reads; None where nothing was calibrated.

    Raises FileFormatError for a missing or damaged file that WEFT_FABRIC names.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return checked(load(named))
    path = default_path()
    return checked(load(path)) if path.is_file() else None


def device_fabric() -> Fabric | None:
    """The fabric that ``algorithm="auto"`` reads on GPUs, if it was measured on these GPUs.

    None where nothing was calibrated, and for a fabric of CPUs or of another machine: weft's
    own table is then the better guess. Raises FileFormatError as local_fabric() does.
    """
    named = os.environ.get(VARIABLE)
    path = default_path("cuda")
    if not named and not path.is_file():
        return None
    fabric = load(named or path)
    same = fabric.fingerprint is not None and dict(fabric.fingerprint) == fingerprint()
    return fabric if fabric.uses_nccl and same else None


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
