"""Fabric: latency and bandwidth of the links inside a node and between nodes.

One object serves the predictor (times from the tiers), the all-reduce tuner (the
measured tables) and the reader of a report (the source of every number).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.errors import FileFormatError, LayoutError
from weft.vocabulary.layout import MOST_RANKS

INTRA: Final = "intra"
INTER: Final = "inter"


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One kind of link, as the α-β model sees it.

    latency_us: one way, from a rank's store to the peer seeing it, a step's fixed cost.
    bandwidth_gb_s: one way, 1e9 bytes a second. Inside a node: what one rank sends with
        all its links busy. Between nodes: what one network adapter sends.
    packet_factor: bytes on the wire a byte of data in weft's packet algorithms (2 where
        half of each packet is the flag).
    Uncertainties are one standard deviation, or half the range that the sources span.
    """

    latency_us: float
    latency_uncertainty_us: float
    latency_source: str
    bandwidth_gb_s: float
    bandwidth_uncertainty_gb_s: float
    bandwidth_source: str
    packet_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("latency_uncertainty_us", "bandwidth_uncertainty_gb_s"):
            if getattr(self, name) < 0:
                raise FileFormatError(f"fabric: {name} {getattr(self, name)} must not be negative")
        for name in ("latency_us", "bandwidth_gb_s"):
            if not getattr(self, name) > 0:
                raise FileFormatError(f"fabric: {name} {getattr(self, name)} must be above 0")
        if self.packet_factor < 1:
            raise FileFormatError(f"fabric: packet_factor {self.packet_factor} must be at least 1")

    @property
    def us_per_byte(self) -> float:
        """β in microseconds a byte of raw wire traffic."""
        return 1e-3 / self.bandwidth_gb_s


@dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """Measured all-reduce latencies of one algorithm on one group, sizes ascending."""

    algorithm: str
    ranks: int
    dtype: str
    bytes: tuple[int, ...]
    latency_us: tuple[float, ...]
    source: str
    nodes: int = 1

    def __post_init__(self) -> None:
        name = f"fabric: table {self.algorithm} x{self.ranks}"
        if len(self.bytes) != len(self.latency_us) or not self.bytes:
            raise FileFormatError(
                f"{name} has {len(self.bytes)} sizes but {len(self.latency_us)} times"
            )
        if list(self.bytes) != sorted(set(self.bytes)) or min(self.bytes) < 1:
            raise FileFormatError(f"{name}: sizes must be positive and ascending")
        if min(self.latency_us) <= 0:
            raise FileFormatError(f"{name}: times must be above 0")
        if self.nodes < 1 or self.ranks < 1 or self.ranks % self.nodes:
            raise FileFormatError(f"{name}: {self.nodes} node(s) do not divide the ranks")

    def interpolate(self, message_bytes: ArrayLike) -> NDArray[np.float64]:
        """Latency in µs by log-log interpolation.

        Below the smallest size its time holds; above the largest, time grows with the
        slope of the last two sizes (of the last size alone where there is one).
        """
        size = np.maximum(np.asarray(message_bytes, dtype=np.float64), 1.0)
        known = np.log(np.asarray(self.bytes, dtype=np.float64))
        time = np.exp(np.interp(np.log(size), known, np.log(self.latency_us)))
        return np.asarray(time + self._last_slope * np.maximum(size - self.bytes[-1], 0.0))

    @property
    def _last_slope(self) -> float:
        """µs a byte beyond the largest size."""
        if len(self.bytes) == 1:
            return self.latency_us[0] / self.bytes[0]
        rise = self.latency_us[-1] - self.latency_us[-2]
        return max(rise, 0.0) / (self.bytes[-1] - self.bytes[-2])


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The links of a machine and what was measured on them.

    gpus_per_node: ranks that usually share a node (a default for the command line).
    nics_per_node: network adapters a node; None = one for every rank.
    call_us: fixed cost of one all-reduce call before its first byte leaves (launch, staging).
    uses_nccl: whether NCCL can run here (its ring and tree are then modelled).
    fingerprint: what identifies the measured machine; None for built-in fabrics.
    """

    name: str
    gpus_per_node: int
    intra: Tier
    inter: Tier
    nics_per_node: int | None = None
    call_us: float = 0.0
    call_uncertainty_us: float = 0.0
    call_source: str = ""
    uses_nccl: bool = True
    tables: tuple[MeasuredTable, ...] = ()
    fingerprint: Mapping[str, str] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1:
            raise FileFormatError(f"fabric {self.name}: gpus_per_node must be at least 1")
        if self.nics_per_node is not None and self.nics_per_node < 1:
            raise FileFormatError(f"fabric {self.name}: nics_per_node must be at least 1")
        if self.call_us < 0 or self.call_uncertainty_us < 0:
            raise FileFormatError(f"fabric {self.name}: call_us must not be negative")

    def tier(self, name: str) -> Tier:
        """The tier called ``intra`` or ``inter``."""
        return self.intra if name == INTRA else self.inter

    def nic_share(self, senders_per_node: int, gpus_per_node: int) -> float:
        """Part of one adapter's bandwidth that each of ``senders_per_node`` ranks gets."""
        adapters = self.nics_per_node or gpus_per_node
        return min(1.0, adapters / max(senders_per_node, 1))

    def node_bandwidth_gb_s(self, gpus_per_node: int) -> float:
        """What a whole node sends to the network in GB/s."""
        return self.inter.bandwidth_gb_s * (self.nics_per_node or gpus_per_node)

    def table(
        self, algorithm: str, *, ranks: int, nodes: int = 1, dtype: str | None = None
    ) -> MeasuredTable | None:
        """The measured table of an algorithm on such a group; ``dtype`` None takes the first."""
        for table in self.tables:
            same = (table.algorithm, table.ranks, table.nodes) == (algorithm, ranks, nodes)
            if same and dtype in (None, table.dtype):
                return table
        return None


def check_shape(nodes: int, gpus_per_node: int) -> None:
    """Raise LayoutError for a shape with no rank."""
    for option, value in (("`nodes`", nodes), ("`gpus_per_node`", gpus_per_node)):
        if not 1 <= value <= MOST_RANKS:
            raise LayoutError(f"{option} {value}: must be 1 to {MOST_RANKS}")
    if nodes * gpus_per_node > MOST_RANKS:
        raise LayoutError(f"`nodes` {nodes}: more than {MOST_RANKS} ranks in all")
