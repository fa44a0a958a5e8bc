"""Every kernel that the adversary drives: the files of this folder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from adversary.kernel import Kernel

KERNELS: tuple[Kernel, ...] = tuple(
    kernel
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))
    for kernel in import_module(f"{__name__}.{path.stem}").KERNELS
)
