"""The kernels' CUDA source compiled for this host behind a shim, and the machine that runs it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weft.kernels.nvrtc import SOURCES

HOST = Path(__file__).parent / "host"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = ("-std=c++17", "-fPIC", "-fno-exceptions", "-ffp-contract=off", "-w")
NO_COMPILER = "no C++ compiler (g++) here: the kernels' source cannot be compiled for the host"

Patch = tuple[str, str, str]
"""A file of the kernels, a text in it, and what stands there instead (a planted fault)."""


class Launch(ctypes.Structure):
    """``struct Launch`` of case.h."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p * 6),
        ("blocks_x", ctypes.c_uint32),
        ("blocks_y", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
    )


class Region(ctypes.Structure):
    """``struct Region`` of case.h."""

    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("owner", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class Stream(ctypes.Structure):
    """``struct Stream`` of case.h."""

    _fields_ = (
        ("launches", ctypes.POINTER(Launch)),
        ("num_launches", ctypes.c_uint32),
        ("room", ctypes.c_uint32),
    )


Step = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32)


class Outside(ctypes.Structure):
    """``struct Outside`` of case.h."""

    _fields_ = (
        ("step", Step),
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("rank", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class CaseRecord(ctypes.Structure):
    """``struct Case`` of case.h."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("num_bytes", ctypes.c_uint64),
        ("streams", ctypes.POINTER(Stream)),
        ("regions", ctypes.POINTER(Region)),
        ("outside", ctypes.POINTER(Outside)),
        ("num_ranks", ctypes.c_uint32),
        ("num_regions", ctypes.c_uint32),
        ("num_outside", ctypes.c_uint32),
        ("overlap", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("timeout_ns", ctypes.c_uint64),
        ("lost_rank", ctypes.c_uint32),
        ("clock", ctypes.c_uint32),
        ("lost_after", ctypes.c_uint64),
        ("schedules", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("heap_bytes", ctypes.c_uint64),
    )


class Outcome(ctypes.Structure):
    """``struct Outcome`` of case.h."""

    _fields_ = (
        ("steps", ctypes.c_uint64),
        ("stale_loads", ctypes.c_uint64),
        ("deliveries", ctypes.c_uint64),
        ("lost", ctypes.c_uint32),
        ("failed", ctypes.c_uint32),
        ("message", ctypes.c_char * 400),
    )


@dataclass(frozen=True)
class Machine:
    """One compiled set of kernels."""

    library: ctypes.CDLL

    def entry(self, kernel: str) -> int:
        """Where a kernel starts."""
        return int(ctypes.cast(getattr(self.library, f"run_{kernel}"), ctypes.c_void_p).value or 0)

    def run(self, case: CaseRecord) -> Outcome:
        """Run one case to its end."""
        outcome = Outcome()
        self.library.run_case(ctypes.byref(case), ctypes.byref(outcome))
        return outcome


@cache
def load(
    source: str, defines: tuple[tuple[str, int], ...] = (), patches: tuple[Patch, ...] = ()
) -> Machine:
    """The machine with the kernels of ``source`` (C++ that includes .cu files).

    Compiled once for what the files say; kept in the system's temporary folder.
    """
    files = _patched(patches)
    flags = (*FLAGS, *(f"-D{name}={value}" for name, value in defines))
    folder = _folder()
    name = _digest(source, flags, files)
    library = folder / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _write(Path(work), files)
            (Path(work) / "kernels.cc").write_text(source)
            made = Path(work) / "machine.so"
            _compile(
                "-O1",
                *flags,
                "-shared",
                f"-I{work}",
                f"{work}/kernels.cc",
                _scheduler(),
                "-o",
                made,
            )
            made.replace(library)
    return Machine(ctypes.CDLL(str(library)))


@cache
def _scheduler() -> Path:
    """The object file of the machine itself, which no kernel changes."""
    files = _patched(())
    folder = _folder()
    made = folder / f"{_digest('machine', FLAGS, files)}.o"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _write(Path(work), files)
            half = Path(work) / "machine.o"
            _compile("-O2", *FLAGS, "-c", f"-I{work}", f"{work}/machine.cc", "-o", half)
            half.replace(made)
    return made


def _patched(patches: Sequence[Patch]) -> dict[str, str]:
    """Every file that is compiled: the kernels' and, over them, the host's."""
    files = {path.name: path.read_text() for path in SOURCES.iterdir() if path.is_file()}
    for name, old, new in patches:
        assert files[name].count(old) == 1, f"{name} does not hold {old!r} once"
        files[name] = files[name].replace(old, new)
    return files | {path.name: path.read_text() for path in HOST.iterdir()}


def _digest(source: str, flags: Sequence[str], files: Mapping[str, str]) -> str:
    text = "\0".join(
        [str(COMPILER), source, *flags, *(f"{k}\0{v}" for k, v in sorted(files.items()))]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"weft-adversary-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def _compile(*arguments: str | Path) -> None:
    assert COMPILER is not None, NO_COMPILER
    done = subprocess.run(
        [COMPILER, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]
