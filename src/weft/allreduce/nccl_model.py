"""NCCL's ring and tree, by NCCL's own tuning model.

Constants: NVIDIA/nccl, src/graph/tuning.cc (2.19 and later): base latencies, latency
of a hop over NVLink and over the network, bandwidth of each protocol as a part of
the bus bandwidth. NCCL picks the cheapest of algorithm x protocol by the same sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weft.fabric.fabric import Fabric

_LL_INTRA_PENALTY: Final = 1.8
"""NCCL's factor on hops inside the node when low-latency packets also cross a network."""

_TREE_EFFICIENCY: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One NCCL protocol: µs fixed, a hop inside the node, a hop between nodes; bandwidth part.

    by_size: factor on the bandwidth at 64 B, 128 B, 256 B, ...; 1 beyond its end.
    """

    name: str
    base_us: float
    intra_us: float
    inter_us: float
    efficiency: float
    by_size: tuple[float, ...] = ()


RING_PROTOCOLS: Final = (
    Protocol(name="LL", base_us=6.6, intra_us=0.6, inter_us=2.7, efficiency=0.5),
    Protocol(name="LL128", base_us=14.0, intra_us=1.9, inter_us=4.0, efficiency=0.92),
    Protocol(name="Simple", base_us=8.4, intra_us=3.4, inter_us=14.0, efficiency=1.0),
)
TREE_PROTOCOLS: Final = (
    Protocol(
        name="LL",
        base_us=6.8,
        intra_us=0.6,
        inter_us=5.0,
        efficiency=1 / 3.8,
        by_size=(*[1.0] * 4, 0.9, 0.8, *[0.7] * 4, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    ),
    Protocol(
        name="LL128",
        base_us=14.0,
        intra_us=1.25,
        inter_us=8.5,
        efficiency=0.915,
        by_size=(
            *[1.0] * 5,
            0.9,
            *[0.8] * 3,
            0.7,
            *[0.6] * 3,
            0.5,
            0.6,
            0.6,
            0.7,
            0.7,
            0.8,
            0.9,
            0.9,
        ),
    ),
    Protocol(
        name="Simple",
        base_us=8.4,
        intra_us=4.0,
        inter_us=14.0,
        efficiency=1.0,
        by_size=(*[0.9] * 7, 0.8, 0.7, 0.6, 0.6, *[0.5] * 6, 0.6, 0.6, 0.7, 0.8, 0.9),
    ),
)


def ring_us(
    message_bytes: NDArray[np.float64], nodes: int, gpus_per_node: int, fabric: Fabric
) -> NDArray[np.float64]:
    """NCCL's ring: 2(n-1) hops, 2(N-1) of them over the network; cheapest protocol."""
    ranks = nodes * gpus_per_node
    inter_hops = 2 * (nodes - 1)
    intra_hops = 2 * (ranks - 1) - inter_hops
    traffic = 2 * (ranks - 1) / ranks * message_bytes
    return _cheapest(
        [
            _fixed(protocol, nodes, fabric, intra_hops, inter_hops)
            + traffic * _us_per_byte(protocol, nodes, gpus_per_node, fabric)
            for protocol in RING_PROTOCOLS
        ]
    )


def tree_us(
    message_bytes: NDArray[np.float64], nodes: int, gpus_per_node: int, fabric: Fabric
) -> NDArray[np.float64]:
    """NCCL's double binary tree between nodes, a chain inside each; cheapest protocol."""
    intra_hops = 2 * (gpus_per_node - 1)
    inter_hops = 2 * math.ceil(math.log2(nodes))
    traffic = 2 * message_bytes / _TREE_EFFICIENCY
    return _cheapest(
        [
            _fixed(protocol, nodes, fabric, intra_hops, inter_hops)
            + traffic
            * _us_per_byte(protocol, nodes, gpus_per_node, fabric)
            / _size_factor(protocol, message_bytes)
            for protocol in TREE_PROTOCOLS
        ]
    )


def _fixed(
    protocol: Protocol, nodes: int, fabric: Fabric, intra_hops: int, inter_hops: int
) -> float:
    """Latency of the hops; a network slower than NCCL's reference costs its own latency."""
    intra_us = protocol.intra_us
    if nodes > 1 and protocol.name == "LL":
        intra_us *= _LL_INTRA_PENALTY
    inter_us = max(protocol.inter_us, fabric.inter.latency_us)
    return protocol.base_us + intra_hops * intra_us + inter_hops * inter_us


def _us_per_byte(protocol: Protocol, nodes: int, gpus_per_node: int, fabric: Fabric) -> float:
    """NCCL spreads its channels over all links of a GPU and all adapters of a node."""
    bus = fabric.intra.bandwidth_gb_s if gpus_per_node > 1 else math.inf
    if nodes > 1:
        bus = min(bus, fabric.node_bandwidth_gb_s(gpus_per_node))
    return 1e-3 / (bus * protocol.efficiency)


def _size_factor(protocol: Protocol, message_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
    factors = np.asarray((*protocol.by_size, 1.0))
    place = np.floor(np.log2(np.maximum(message_bytes, 64.0) / 64.0)).astype(np.int64)
    return np.asarray(factors[np.minimum(place, len(factors) - 1)])


def _cheapest(times: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.minimum.reduce(times))
