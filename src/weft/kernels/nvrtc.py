"""Compile weft's CUDA sources with NVRTC at first use and keep the cubins on disk.

The sources travel in the wheel; neither nvcc nor a host compiler nor a CUDA header is needed.
A cubin is found again by the hash of everything that went into it. The cache lies in
``$WEFT_CACHE_DIR`` or ``~/.cache/weft``; where that cannot be written, each process compiles
(a few seconds) for itself.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from weft.errors import EnvironmentUnavailable

SOURCES = Path(__file__).parent / "cuda"


class Library(Protocol):
    """Compiled device code that a source calls."""

    @property
    def identity(self) -> str:
        """What tells this library and its linker from any other."""

    def link(self, relocatable: bytes, architecture: str) -> bytes:
        """The complete cubin."""


def compile_source(
    name: str, defines: Mapping[str, int], architecture: str, library: Library | None = None
) -> bytes:
    """The cubin of ``SOURCES/name`` for ``architecture`` ("sm_90"), from the cache or fresh.

    library: what it is linked against. Raises EnvironmentUnavailable where NVRTC is missing or
    refuses the source, or the linker does.
    """
    linked_with = [] if library is None else [library.identity]
    options = [*_options(defines, architecture), *linked_with]
    path = cache_directory() / f"{_key(name, options)}.cubin"
    if path.is_file():
        return path.read_bytes()
    relocatable = () if library is None else ("--relocatable-device-code=true",)
    cubin, _ = compile_fresh(name, defines, architecture, *relocatable)
    if library is not None:
        cubin = library.link(cubin, architecture)
    _keep(path, cubin)
    return cubin


def compile_fresh(
    name: str, defines: Mapping[str, int], architecture: str, *extra_options: str
) -> tuple[bytes, str]:
    """Compile without looking at the cache: (cubin, the compiler's log)."""
    nvrtc = _nvrtc()
    headers = sorted(SOURCES.glob("*.cuh"))
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            (SOURCES / name).read_bytes(),
            name.encode(),
            len(headers),
            [header.read_bytes() for header in headers],
            [header.name.encode() for header in headers],
        ),
        name,
    )
    options = [option.encode() for option in (*_options(defines, architecture), *extra_options)]
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    if int(status[0]) != 0:
        errors = [line for line in log.splitlines() if "error" in line]
        raise EnvironmentUnavailable(f"NVRTC cannot compile {name}: {' '.join(errors)[:500]}")
    cubin = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program), name)
    _checked(nvrtc.nvrtcGetCUBIN(program, cubin), name)
    nvrtc.nvrtcDestroyProgram(program)
    return cubin, log


def cache_directory() -> Path:
    """Where cubins are kept: ``$WEFT_CACHE_DIR/kernels``, else ``~/.cache/weft/kernels``."""
    root = os.environ.get("WEFT_CACHE_DIR")
    return (Path(root) if root else Path.home() / ".cache" / "weft") / "kernels"


def version() -> str:
    """NVRTC's version, "13.0"; EnvironmentUnavailable where there is none."""
    major, minor = _checked(_nvrtc().nvrtcVersion(), "nvrtcVersion")
    return f"{major}.{minor}"


def _options(defines: Mapping[str, int], architecture: str) -> list[str]:
    flags = [f"-D{key}={value}" for key, value in sorted(defines.items())]
    return [f"--gpu-architecture={architecture}", "--std=c++17", "-lineinfo", *flags]


def _key(name: str, options: list[str]) -> str:
    digest = hashlib.sha256()
    for path in [SOURCES / name, *sorted(SOURCES.glob("*.cuh"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join([version(), *options]).encode())
    return f"{Path(name).stem}-{digest.hexdigest()[:24]}"


def _keep(path: Path, cubin: bytes) -> None:
    """Write whole or not at all: several ranks may arrive here at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        Path(temporary).replace(path)
    except OSError:
        return


@cache
def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise EnvironmentUnavailable(
            "weft's GPU kernels need NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc)"
        ) from error
    return nvrtc


def _checked(result: tuple[Any, ...], what: str) -> Any:
    status, *values = result
    if int(status) != 0:
        raise EnvironmentUnavailable(f"NVRTC failed on {what}: {status}")
    return values[0] if len(values) == 1 else values


def _text(size: Any, read: Any, program: Any) -> str:
    buffer: bytes = b" " * _checked(size(program), "the log")
    _checked(read(program, buffer), "the log")
    return buffer.decode(errors="replace").rstrip("\0")
