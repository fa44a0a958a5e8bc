"""The few CUDA driver calls that weft makes, with errors as exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from weft.errors import EnvironmentUnavailable


def driver() -> Any:
    """The ``cuda.bindings.driver`` module; EnvironmentUnavailable names the missing package."""
    try:
        from cuda.bindings import driver as module
    except ImportError as error:
        raise EnvironmentUnavailable(
            "weft's GPU kernels need the package cuda-bindings (pip install cuda-bindings)"
        ) from error
    return module


def checked(result: tuple[Any, ...], what: str) -> Any:
    """Values of a driver call; EnvironmentUnavailable names ``what`` and the CUDA error."""
    status, *values = result
    if int(status) != 0:
        raise EnvironmentUnavailable(f"{what} failed with {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else values


class Kernel:
    """One compiled kernel and the argument block that its launches reuse.

    Not safe for two host threads at once: the arguments live in the object.
    """

    def __init__(
        self, function: Any, arguments: Sequence[Any], *, overlap: bool, cluster: int = 1
    ) -> None:
        """Take ``arguments`` as ctypes values; change them in place before a launch.

        overlap: allow the launch to overtake the end of the kernel before it
        (programmatic dependent launch), for kernels that wait for it themselves.
        cluster: blocks of a cluster; the blocks of a launch are a multiple of it.
        """
        self._function = function
        self.arguments = list(arguments)
        self._pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.addressof(argument) for argument in self.arguments)
        )
        self._address = ctypes.addressof(self._pointers)
        self._driver = driver()
        self._launch = self._driver.cuLaunchKernelEx
        self._config = self._driver.CUlaunchConfig()
        self._config.gridDimZ = 1
        self._config.blockDimY = self._config.blockDimZ = 1
        self._config.sharedMemBytes = 0
        attributes = [self._overlap_attribute()] if overlap else []
        attributes += [self._cluster_attribute(cluster)] if cluster > 1 else []
        self._config.attrs = attributes
        self._config.numAttrs = len(attributes)

    def _overlap_attribute(self) -> Any:
        attribute = self._driver.CUlaunchAttribute()
        identifiers = self._driver.CUlaunchAttributeID
        attribute.id = identifiers.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        return attribute

    def _cluster_attribute(self, blocks: int) -> Any:
        attribute = self._driver.CUlaunchAttribute()
        attribute.id = self._driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        shape = attribute.value.clusterDim
        shape.x, shape.y, shape.z = blocks, 1, 1
        return attribute

    def launch(self, blocks: int, threads: int, stream: int, rows: int = 1) -> None:
        """Queue the kernel on ``stream`` (a CUstream handle) with a grid of (blocks, rows)."""
        config = self._config
        config.gridDimX = blocks
        config.gridDimY = rows
        config.blockDimX = threads
        config.hStream = stream
        status = self._launch(config, self._function, self._address, 0)
        if int(status[0]) != 0:
            checked(status, "launching a weft kernel")


class Module:
    """A loaded cubin. It stays loaded as long as the process, like the kernels of torch."""

    def __init__(self, cubin: bytes) -> None:
        self._driver = driver()
        self._module = checked(self._driver.cuModuleLoadData(cubin), "loading a weft kernel")

    @property
    def handle(self) -> int:
        """The CUmodule, as a number for C libraries."""
        return int(self._module)

    def function(self, name: str) -> Any:
        """The kernel called ``name``; EnvironmentUnavailable where the module has none."""
        found = self._driver.cuModuleGetFunction(self._module, name.encode())
        return checked(found, f"finding the kernel {name}")
