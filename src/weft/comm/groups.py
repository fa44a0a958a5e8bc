"""ProcessGroups: the one owner of every process group of a run."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from itertools import count
from typing import Any, Final, Self

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from weft.allreduce.selection import AUTO, LIBRARY
from weft.comm.all_reduce import open_reducer
from weft.comm.communicator import Communicator
from weft.comm.liveness import Liveness
from weft.comm.recorder import Call, Recorder, RecordingTransport
from weft.comm.transport import TorchTransport
from weft.errors import CommunicationError
from weft.kernels.reducer import Peers, Reducer
from weft.vocabulary.conventions import check_all_reduce
from weft.vocabulary.layout import GroupKind, Layout

DEFAULT_TIMEOUT_S: Final = 120.0
_KEPT_HOST_MESSAGES: Final = 1024
_STORES: Final[dict[tuple[Any, ...], tuple[Store, Iterator[int]]]] = {}


class ProcessGroups:
    """A communicator for each kind of group that this rank belongs to.

    ``tp``, ``sp`` (the same ranks as tp), ``pp``, ``ep``, ``dp``, ``dcp`` and ``world``. Groups
    of one rank need no process group. The tensor-parallel group (and any other of the same
    ranks; on GPUs the experts' too, for the exchange) has the kernels that ``all_reduce``
    chooses, the others the library's own. Close it (or use it in ``with``) to free them.
    """

    def __init__(
        self,
        layout: Layout,
        rank: int,
        device: torch.device,
        store: Store | None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        all_reduce: str = LIBRARY,
    ) -> None:
        self.layout, self.rank, self.device = layout, rank, device
        self._timeout_s = timeout_s
        self._store, self._host_messages = store, Counter[str]()
        self._liveness: Liveness | None = None
        self.recorder: Recorder | None = None
        if store is not None:
            self._liveness = Liveness(store.clone(), rank, layout.world_size)  # type: ignore[attr-defined]
        self._process_groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._replicas: dist.ProcessGroup | None = None
        self._open_communicators(all_reduce)

    def _open_communicators(self, all_reduce: str) -> None:
        self._reducers: dict[tuple[int, ...], Reducer] = {}
        self.tp = self._communicator("tp", all_reduce)
        on_gpu = self.device.type == "cuda"
        self.ep = self._communicator("ep", all_reduce if on_gpu else LIBRARY)
        self.world = self._communicator("world")
        self.sp = self._communicator("sp")
        self.pp = self._communicator("pp")
        self.dp = self._communicator("dp")
        self.dcp = self._communicator("dcp")
        self.kv: Communicator | None = None

    @property
    def stage(self) -> int:
        return self.layout.stage_of(self.rank)

    @property
    def replica(self) -> int:
        return self.layout.replica_of(self.rank)

    @property
    def communicators(self) -> tuple[Communicator, ...]:
        every = (self.tp, self.sp, self.pp, self.ep, self.dp, self.dcp, self.world)
        return every if self.kv is None else (*every, self.kv)

    @property
    def reducer(self) -> Reducer | None:
        """The all-reduces of the tensor-parallel group; None where it is one rank."""
        return self._reducers.get(self.tp.ranks)

    def check(self) -> None:
        """Raise LostRankError if an all-reduce that has run so far gave up on a rank."""
        for reducer in self._reducers.values():
            reducer.check()

    def _communicator(self, kind: GroupKind, all_reduce: str = LIBRARY) -> Communicator:
        ranks = self.layout.group_of(kind, self.rank)
        return Communicator(
            kind=kind,
            ranks=ranks,
            rank=ranks.index(self.rank),
            transport=_NO_PEERS if len(ranks) == 1 else self._transport(ranks, all_reduce),
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

    def process_group(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        """The torch group of these ranks, made by all of them together at the first call."""
        if ranks not in self._process_groups:
            self._process_groups[ranks] = (
                dist.group.WORLD  # type: ignore[assignment]
                if len(ranks) == self.layout.world_size
                else dist.new_group(list(ranks), use_local_synchronization=True)
            )
        return self._process_groups[ranks]

    def _transport(self, ranks: tuple[int, ...], all_reduce: str = LIBRARY) -> TorchTransport:
        if ranks not in self._reducers:
            on_gpu = self.device.type == "cuda"
            nodes = len({self.layout.node_of(rank) for rank in ranks})
            self._reducers[ranks] = open_reducer(
                self.process_group(ranks),
                self.device,
                all_reduce,
                peers=Peers(ranks=ranks, missing=self._missing_ranks),
                num_nodes=nodes if on_gpu else None,
                timeout_s=self._timeout_s,
            )
        return TorchTransport(self._reducers[ranks])

    def _missing_ranks(self) -> tuple[int, ...]:
        return self._liveness.missing() if self._liveness else ()

    @contextmanager
    def with_all_reduce(self, all_reduce: str) -> Iterator[ProcessGroups]:
        """The same groups with another all-reduce; collective, closed at the end."""
        groups = copy(self)
        groups._open_communicators(all_reduce)  # noqa: SLF001  of our own class
        yield groups
        groups.close_reducers()

    def close_reducers(self) -> None:
        """Give back the memory of the all-reduces; collective."""
        for reducer in self._reducers.values():
            reducer.close()

    @contextmanager
    def recording(self, *, eager: bool = False) -> Iterator[Recorder]:
        """Write down every call of every group while the context is open.

        eager: without replayed graphs, whose calls are counted but not timed.
        """
        recorder, before = Recorder(eager=eager), self.recorder
        self.recorder = recorder
        plain = [communicator.transport for communicator in self.communicators]
        for communicator in self.communicators:
            communicator.transport = RecordingTransport(  # type: ignore[assignment]
                communicator.transport, recorder, communicator.kind, communicator.size
            )
        try:
            yield recorder
        finally:
            self.recorder = before
            for communicator, transport in zip(self.communicators, plain, strict=True):
                communicator.transport = transport

    def replayed(self, calls: Sequence[Call]) -> None:
        """A captured graph with these calls ran again: for the recorder, if there is one."""
        if self.recorder is not None:
            self.recorder.replayed(calls)

    def most_of_replicas(self, *values: int) -> list[int]:
        """The largest of each of ``values`` on the ranks with this one's place in the other replicas.

        Control data only, on the host: through gloo, and no row of a schedule (as in vLLM,
        v1/worker/dp_utils.py, by default).
        """
        if self._replicas is None:
            ranks = list(self.dp.ranks)
            self._replicas = dist.new_group(ranks, use_local_synchronization=True, backend="gloo")
        found = torch.tensor(values)
        try:
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._replicas)
        except RuntimeError as error:
            raise CommunicationError(f"the replicas cannot agree on a step: {error}") from error
        return found.tolist()

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

    def all_arrive(self, name: str, ranks: tuple[int, ...], wait_s: float) -> bool:
        """Whether all of ``ranks`` call this (as often) with this ``name`` within the wait."""
        if len(ranks) == 1:
            return True
        assert self._store is not None
        scope = f"arrive/{name}/{ranks[0]}"
        self._host_messages[scope] += 1
        keys = {rank: f"weft/{scope}/{self._host_messages[scope]}/{rank}" for rank in ranks}
        self._store.set(keys[self.rank], "")
        try:
            self._store.wait(list(keys.values()), timedelta(seconds=wait_s))
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """Close the all-reduces and leave the run; collective."""
        self.close_reducers()
        self.leave()

    def leave(self) -> None:
        """Leave the run and destroy the process groups; waits for no rank."""
        if self._liveness is not None:
            self._liveness.leave()
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.leave()


def open_groups(
    layout: Layout,
    *,
    rank: int = 0,
    device: torch.device | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    all_reduce: str = AUTO,
) -> ProcessGroups:
    """Join the other ranks (environment variables of the launcher) and build every group.

    all_reduce: whose the tensor-parallel group uses, one of ALL_REDUCE_CHOICES.
    """
    check_all_reduce(all_reduce)
    device = device or torch.device("cpu")
    if layout.world_size == 1:
        return ProcessGroups(layout, 0, device, None)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=_store_of_this_run(rank, layout.world_size, timedelta(seconds=timeout_s)),
            rank=rank,
            world_size=layout.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CommunicationError(f"rank {rank} cannot join the run: {reason}") from error
    store = _get_default_store()
    return ProcessGroups(layout, rank, device, store, timeout_s, all_reduce)


def _store_of_this_run(rank: int, world_size: int, timeout: timedelta) -> Store:
    """The launcher's store, with keys of its own for each run that these ranks make."""
    where = (os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), rank, world_size)
    if where not in _STORES:
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
        _STORES[where] = store, count()
    launchers, runs = _STORES[where]
    own = PrefixStore(f"run{next(runs)}", launchers)
    own.set_timeout(timeout)
    return own


def open_fake_groups(
    layout: Layout, *, rank: int, before: int = 0, after: int = 0
) -> ProcessGroups:
    """Groups of torch's ``fake`` backend: every operation returns at once, no peer is needed.

    before, after: ranks of another layout that exchange caches with these (the group ``kv``).
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    groups = ProcessGroups(layout, rank, torch.device("meta"), None)
    if before or after:
        ranks = tuple(range(before + layout.world_size + after))
        groups.kv = Communicator(kind="kv", ranks=ranks, rank=before + rank, transport=_NOWHERE)
    return groups


class _NoPeers:
    """The transport of a group of one: never called."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} in a group of one rank")


_NO_PEERS: Final[Any] = _NoPeers()


class _Nowhere:
    """The transport of a dry run's ``kv``, whose other end is in no process group."""

    def send(self, tensor: torch.Tensor, dst: int, site: str) -> None:
        """Forget it."""

    def recv(self, tensor: torch.Tensor, src: int, site: str) -> torch.Tensor:  # noqa: ARG002
        return tensor


_NOWHERE: Final[Any] = _Nowhere()
