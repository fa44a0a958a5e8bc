"""NVSHMEM as it is installed (pip's nvidia-nvshmem-cu13): find it, link kernels, share memory.

No header of it is used. The host library is called through ctypes, and the kernels are linked
against ``libnvshmem_device.a`` with nvJitLink (see hierarchical_nvshmem.cu).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist

from weft.errors import EnvironmentUnavailable
from weft.kernels.driver import Module, checked, driver
from weft.kernels.selection import GroupShape, num_vectors
from weft.kernels.vote import agree

PACKAGE: Final = "nvidia.nvshmem"
HOST_LIBRARY: Final = "libnvshmem_host.so.3"
DEVICE_LIBRARY: Final = "libnvshmem_device.a"
WORDS_BYTES: Final = 4096  # kShmemWords of hierarchical_nvshmem.cu
MAX_NODES: Final = 8
_WITH_UNIQUE_ID: Final = 1 << 3
_INITIALIZED: Final = range(2, 5)  # states of nvshmemx_init_status() in which memory can be had


class ShmemRecord(ctypes.Structure):
    """``struct ShmemRecord`` of hierarchical_nvshmem.cu."""

    _fields_ = (
        ("heap", ctypes.c_uint64),
        ("direct", ctypes.c_uint64 * MAX_NODES),
        ("part_bytes", ctypes.c_uint64),
        ("pe", ctypes.c_uint32 * MAX_NODES),
    )


class UniqueId(ctypes.Structure):
    """What one rank draws and all start NVSHMEM with (its version 1, 128 bytes)."""

    _fields_ = (("version", ctypes.c_int), ("internal", ctypes.c_char * 124))


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.POINTER(UniqueId)),
        ("rank", ctypes.c_int),
        ("num_ranks", ctypes.c_int),
    )


class _InitArguments(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("unique_id", _Arguments),
        ("content", ctypes.c_char * 96),
    )


class InitAttributes(ctypes.Structure):
    """How NVSHMEM is to start (its version 1, 144 bytes)."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("mpi_communicator", ctypes.c_void_p),
        ("arguments", _InitArguments),
    )


def problem() -> str | None:
    """Why kernels cannot be linked against NVSHMEM here, or None. Loads no GPU library."""
    folder = _folder()
    if folder is None:
        return "NVSHMEM is not installed (pip install nvidia-nvshmem-cu13)"
    for name in (HOST_LIBRARY, DEVICE_LIBRARY):
        if not (folder / name).is_file():
            return f"NVSHMEM in {folder} has no {name}; install nvidia-nvshmem-cu13 3.4 or later"
    try:
        linker_version()
    except EnvironmentUnavailable as error:
        return str(error)
    return None


def linker_version() -> str:
    """The version of nvJitLink; EnvironmentUnavailable where it cannot be loaded."""
    try:
        from cuda.bindings import nvjitlink

        return ".".join(map(str, nvjitlink.version()))
    except Exception as error:  # its own exception types differ between versions
        raise EnvironmentUnavailable(
            "linking against NVSHMEM needs nvJitLink (pip install nvidia-nvjitlink)"
        ) from error


class DeviceLibrary:
    """libnvshmem_device.a, for weft.kernels.nvrtc to link against. Call problem() first."""

    def __init__(self) -> None:
        folder = _folder()
        assert folder is not None
        self.path = folder / DEVICE_LIBRARY

    @property
    def identity(self) -> str:
        """The file and the linker that made a cubin."""
        return f"{self.path.stat().st_size} {self.path.stat().st_mtime_ns} {linker_version()}"

    def link(self, relocatable: bytes, architecture: str) -> bytes:
        """The cubin of a relocatable one and what it uses of the library."""
        linker_version()
        from cuda.bindings import nvjitlink

        handle = nvjitlink.create(1, [f"-arch={architecture}"])
        try:
            kinds = nvjitlink.InputType
            nvjitlink.add_data(handle, kinds.CUBIN, relocatable, len(relocatable), "weft")
            nvjitlink.add_file(handle, kinds.LIBRARY, str(self.path))
            nvjitlink.complete(handle)
            cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
            nvjitlink.get_linked_cubin(handle, cubin)
        except nvjitlink.nvJitLinkError as error:
            raise EnvironmentUnavailable(f"nvJitLink cannot link {self.path}: {error}") from error
        finally:
            nvjitlink.destroy(handle)
        return bytes(cubin)


class ShmemLink:
    """A rank's symmetric memory for the traffic between nodes, and how to reach the others'."""

    def __init__(self, group: dist.ProcessGroup, topology: GroupShape, max_bytes: int) -> None:
        """Collective; starts NVSHMEM for the ranks of ``group`` where nobody has yet.

        Raises EnvironmentUnavailable on all ranks if one of them fails.
        """
        part = -(-num_vectors(max_bytes) // topology.ranks_per_node) * 16
        self.part_bytes = -(-part // 4096) * 4096
        self._heap: int | None = None
        numbers = _start(group)
        self.record = self._allocate(group, topology, numbers)

    @property
    def num_bytes(self) -> int:
        """Size of the symmetric memory."""
        return WORDS_BYTES + 2 * (1 + self._nodes) * self.part_bytes

    def _allocate(
        self, group: dist.ProcessGroup, topology: GroupShape, numbers: list[int]
    ) -> ShmemRecord:
        self._nodes = topology.nodes
        heap = _library().nvshmem_malloc(self.num_bytes)
        agree(group, None, None if heap else f"NVSHMEM has no {self.num_bytes} bytes left")
        self._heap = heap
        idle = WORDS_BYTES + 2 * self.part_bytes
        module = driver()
        checked(module.cuMemsetD8(heap, 0, WORDS_BYTES), "clearing symmetric memory")
        checked(
            module.cuMemsetD8(heap + idle, 0xFF, self.num_bytes - idle), "clearing symmetric memory"
        )
        checked(module.cuCtxSynchronize(), "clearing symmetric memory")
        return self._record(dist.get_rank(group), topology, numbers)

    def _record(self, rank: int, topology: GroupShape, numbers: list[int]) -> ShmemRecord:
        node, place = divmod(rank, topology.ranks_per_node)
        record = ShmemRecord(heap=self._heap, part_bytes=self.part_bytes)
        for other in range(topology.nodes):
            number = numbers[other * topology.ranks_per_node + place]
            record.pe[other] = number
            if other != node:
                record.direct[other] = _library().nvshmem_ptr(self._heap, number) or 0
        return record

    def load(self, module: Module) -> None:
        """Tell the NVSHMEM inside ``module`` about this process."""
        status = _library().nvshmemx_cumodule_init(ctypes.c_void_p(module.handle))
        if status != 0:
            raise EnvironmentUnavailable(f"NVSHMEM refused a module of weft (error {status})")

    def close(self, *, lost: bool) -> None:
        """Release the memory: collective, so it stays where a rank is lost."""
        if self._heap is not None and not lost:
            _library().nvshmem_free(ctypes.c_void_p(self._heap))
        self._heap = None


def _start(group: dist.ProcessGroup) -> list[int]:
    """Start NVSHMEM if need be; the number in NVSHMEM of every rank of ``group``."""
    library, failure = None, None
    unique = UniqueId(version=(1 << 16) + ctypes.sizeof(UniqueId))
    try:
        library = _library()
        started = library.nvshmemx_init_status() in _INITIALIZED
        if not started and library.nvshmemx_get_uniqueid(ctypes.byref(unique)) != 0:
            failure = "NVSHMEM gives no unique id"
    except (EnvironmentUnavailable, OSError) as error:
        started, failure = False, f"NVSHMEM: {error}"
    answers = agree(group, (started, bytes(unique)), failure)
    assert library is not None
    if not any(already for already, _ in answers):
        failure = _initialize(group, UniqueId.from_buffer_copy(answers[0][1]))
        agree(group, None, failure)
    mine = (library.nvshmem_my_pe(), library.nvshmem_n_pes())
    numbers = [number for number, _ in agree(group, mine, _foreign(group))]
    if sorted(numbers) != list(range(len(numbers))):
        raise EnvironmentUnavailable("NVSHMEM was started for other ranks in this process")
    return numbers


def _initialize(group: dist.ProcessGroup, unique: UniqueId) -> str | None:
    arguments = _Arguments(
        version=(1 << 16) + ctypes.sizeof(_Arguments),
        id=ctypes.pointer(unique),
        rank=dist.get_rank(group),
        num_ranks=dist.get_world_size(group),
    )
    attributes = InitAttributes(
        version=(1 << 16) + ctypes.sizeof(InitAttributes),
        arguments=_InitArguments(
            version=(1 << 16) + ctypes.sizeof(_InitArguments), unique_id=arguments
        ),
    )
    status = _library().nvshmemx_hostlib_init_attr(_WITH_UNIQUE_ID, ctypes.byref(attributes))
    return None if status == 0 else f"NVSHMEM does not start (error {status})"


def _foreign(group: dist.ProcessGroup) -> str | None:
    """Why this process's NVSHMEM is not the group's, or None."""
    library = _library()
    if library.nvshmemx_init_status() not in _INITIALIZED:
        return "NVSHMEM runs on some of the ranks alone"
    count = library.nvshmem_n_pes()
    if count != dist.get_world_size(group):
        return f"NVSHMEM was started for {count} other ranks in this process"
    return None


def _folder() -> Path | None:
    try:
        found = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:
        return None
    places = [] if found is None else list(found.submodule_search_locations or ())
    return next((Path(place) / "lib" for place in places if (Path(place) / "lib").is_dir()), None)


@cache
def _library() -> Any:
    """The host library, once a process; OSError where it cannot be loaded."""
    folder = _folder()
    if folder is None:
        raise EnvironmentUnavailable(problem() or "not installed")
    os.environ.setdefault("NVSHMEM_DISABLE_NVLS", "1")  # no multicast is ever used
    library = ctypes.CDLL(str(folder / HOST_LIBRARY), mode=ctypes.RTLD_GLOBAL)
    library.nvshmem_malloc.restype = ctypes.c_void_p
    library.nvshmem_malloc.argtypes = [ctypes.c_size_t]
    library.nvshmem_ptr.restype = ctypes.c_void_p
    library.nvshmem_ptr.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library
