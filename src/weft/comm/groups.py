"""ProcessGroups: the one owner of every process group of a run."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Self

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store, _get_default_store

from weft.comm.all_reduce import AlgorithmTransport
from weft.comm.communicator import Communicator
from weft.comm.liveness import Liveness
from weft.comm.recorder import Recorder, RecordingTransport
from weft.comm.transport import TorchTransport, Transport
from weft.errors import CommunicationError
from weft.vocabulary.layout import GroupKind, Layout

DEFAULT_TIMEOUT_S: Final = 120.0
_KEPT_HOST_MESSAGES: Final = 1024


class ProcessGroups:
    """A communicator for each kind of group that this rank belongs to.

    ``tp``, ``sp`` (the same ranks as tp), ``pp``, ``ep``, ``dp`` and ``world``. Groups
    of one rank need no process group. Close it (or use it in ``with``) to free them.
    """

    def __init__(
        self,
        layout: Layout,
        rank: int,
        device: torch.device,
        store: Store | None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.layout, self.rank, self.device = layout, rank, device
        self._timeout_s = timeout_s
        self._store, self._host_messages = store, Counter[str]()
        self._liveness: Liveness | None = None
        if store is not None:
            self._liveness = Liveness(store.clone(), rank, layout.world_size)  # type: ignore[attr-defined]
        self._process_groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self.world = self._communicator("world")
        self.tp = self._communicator("tp")
        self.sp = self._communicator("sp")
        self.pp = self._communicator("pp")
        self.ep = self._communicator("ep")
        self.dp = self._communicator("dp")

    @property
    def stage(self) -> int:
        return self.layout.stage_of(self.rank)

    @property
    def replica(self) -> int:
        return self.layout.replica_of(self.rank)

    @property
    def communicators(self) -> tuple[Communicator, ...]:
        return (self.tp, self.sp, self.pp, self.ep, self.dp, self.world)

    def _communicator(self, kind: GroupKind) -> Communicator:
        ranks = self.layout.group_of(kind, self.rank)
        return Communicator(
            kind=kind,
            ranks=ranks,
            rank=ranks.index(self.rank),
            transport=_NO_PEERS if len(ranks) == 1 else self._transport(ranks),
        )

    def leading(self, size: int) -> Communicator | None:
        """A communicator of the run's first ``size`` ranks; None on the others. All call it."""
        if size == self.layout.world_size:
            return self.world
        ranks = tuple(range(size))
        group = dist.new_group(list(ranks))
        if self.rank >= size:
            return None
        self._process_groups.setdefault(ranks, group)
        transport = self._transport(ranks)
        return Communicator(kind="world", ranks=ranks, rank=self.rank, transport=transport)

    def _transport(self, ranks: tuple[int, ...]) -> Transport:
        if ranks not in self._process_groups:
            self._process_groups[ranks] = (
                dist.group.WORLD  # type: ignore[assignment]
                if len(ranks) == self.layout.world_size
                else dist.new_group(list(ranks), use_local_synchronization=True)
            )
        group = self._process_groups[ranks]
        if dist.get_backend(group) == "gloo":
            return AlgorithmTransport(group, ranks, self._missing_ranks, self._timeout_s)
        return TorchTransport(group, ranks, self._missing_ranks)

    def _missing_ranks(self) -> tuple[int, ...]:
        return self._liveness.missing() if self._liveness else ()

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Write down every call of every group while the context is open."""
        recorder = Recorder()
        plain = [communicator.transport for communicator in self.communicators]
        for communicator in self.communicators:
            communicator.transport = RecordingTransport(
                communicator.transport, recorder, communicator.kind, communicator.size
            )
        try:
            yield recorder
        finally:
            for communicator, transport in zip(self.communicators, plain, strict=True):
                communicator.transport = transport

    def host_broadcast(self, value: Any, src: int, scope: str = "world") -> Any:
        """Give every rank the (picklable) ``value`` of global rank ``src``, outside the groups.

        Control data only: it goes through the rendezvous store and is no collective.
        The ranks that share a ``scope`` must call it in the same order.
        """
        if self.layout.world_size == 1:
            return value
        assert self._store is not None
        number = self._host_messages[scope]
        self._host_messages[scope] += 1
        key = f"weft/{scope}/{number}"
        try:
            if self.rank == src:
                self._store.set(key, pickle.dumps(value).hex())
                if number >= _KEPT_HOST_MESSAGES:
                    self._store.delete_key(f"weft/{scope}/{number - _KEPT_HOST_MESSAGES}")
                return value
            return pickle.loads(bytes.fromhex(self._store.get(key).decode()))  # noqa: S301 - written by our own ranks
        except RuntimeError as error:
            raise CommunicationError(f"host message from rank {src}: {error}") from error

    def host_gather(self, value: Any) -> list[Any]:
        """Every rank's (picklable) ``value``, in rank order, on every rank; outside the groups."""
        return [self.host_broadcast(value, src) for src in range(self.layout.world_size)]

    def close(self) -> None:
        """Leave the run and destroy the process groups."""
        if self._liveness is not None:
            self._liveness.leave()
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_groups(
    layout: Layout,
    *,
    rank: int = 0,
    device: torch.device | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ProcessGroups:
    """Join the other ranks (environment variables of the launcher) and build every group."""
    device = device or torch.device("cpu")
    if layout.world_size == 1:
        return ProcessGroups(layout, 0, device, None)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            rank=rank,
            world_size=layout.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CommunicationError(f"rank {rank} cannot join the run: {reason}") from error
    store = _get_default_store()
    return ProcessGroups(layout, rank, device, store, timeout_s)


def open_fake_groups(layout: Layout, *, rank: int) -> ProcessGroups:
    """Groups of torch's ``fake`` backend: every operation returns at once, no peer is needed."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    return ProcessGroups(layout, rank, torch.device("meta"), None)


class _NoPeers:
    """The transport of a group of one: never called."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} in a group of one rank")


_NO_PEERS: Final[Any] = _NoPeers()
