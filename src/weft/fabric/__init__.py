"""Fabrics: the links under a group of ranks, measured or built in by name."""

from weft.fabric.fabric import Fabric, MeasuredTable, Tier
from weft.fabric.files import load

__all__ = ["Fabric", "MeasuredTable", "Tier", "load"]
