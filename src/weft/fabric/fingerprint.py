"""What identifies a machine's links and processors, so that a foreign file is noticed."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final

_CPU_INFO: Final = Path("/proc/cpuinfo")
_GPU_INFO: Final = Path("/proc/driver/nvidia/gpus")


def fingerprint() -> dict[str, str]:
    """Processor, cores and GPUs of this machine; equal nodes of a cluster are equal here."""
    return {
        "architecture": platform.machine(),
        "cpu": _first(r"model name\s*:\s*(.+)", _read(_CPU_INFO)) or platform.processor(),
        "cores": str(os.cpu_count() or 0),
        "gpus": _gpus(),
    }


def describe(identity: dict[str, str]) -> str:
    """One line for people."""
    gpus = f", {identity['gpus']}" if identity.get("gpus") else ""
    return f"{identity.get('cpu', '?')} x {identity.get('cores', '?')}{gpus}"


def _gpus() -> str:
    """Names and numbers of the GPUs that the driver lists, e.g. ``4 x NVIDIA H200``."""
    names = [_first(r"Model:\s*(.+)", _read(path / "information")) for path in _listed(_GPU_INFO)]
    return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))


def _listed(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""
