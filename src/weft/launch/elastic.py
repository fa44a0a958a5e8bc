"""Start the ranks of a run on this machine through torch's elastic launcher.

The launcher watches its ranks and ends all of them when one fails; this module
finds out which one failed first and raises that as one error of weft's own tree.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from weft.errors import (
    EnvironmentUnavailable,
    LostRankError,
    UserError,
    WeftError,
)
from weft.launch.environment import FIRST_LOCAL_RANK
from weft.launch.watch import SHUTDOWN_S, Watch, error_of

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_JOIN_S: Final = 120
_FOLLOWS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where ranks are started: this node's share of them, and where all nodes meet.

    One launcher runs on each node; with ``num_nodes`` 1 the meeting place is chosen
    here and never collides. Tasks of srun that share a machine count as nodes, and
    ``first_local_rank`` ranks of that machine are those of earlier tasks.
    """

    ranks_per_node: int
    num_nodes: int = 1
    node_rank: int = 0
    master_address: str = "127.0.0.1"
    master_port: int = 29500
    first_local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.num_nodes:
            raise UserError(
                f"`node_rank` {self.node_rank}: must be 0 to {self.num_nodes - 1} (`num_nodes`)"
            )


def run_ranks(arguments: Sequence[str], launch: Launch) -> None:
    """Run ``python ARGUMENTS`` once a rank and wait for all of them.

    Raises the error of the rank that failed first: LostRankError for one that was
    killed, else the UserError, CheckFailed or EnvironmentUnavailable it ended with.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if launch.num_nodes > 1:
        _check_master(launch)
    with _environment(_variables(launch)), _quiet():
        try:
            with _watch(launch) as watch:
                try:
                    elastic_launch(_config(launch), sys.executable)(*arguments)
                except ChildFailedError as error:
                    own, follows = _first_failure(error.failures)
                    raise watch.cause_of(own, follows=follows) from None
                except Exception:
                    if watch.cause is not None:
                        raise watch.cause from None
                    raise
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise EnvironmentUnavailable(f"ended by signal {error.sigval.name}") from None
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise EnvironmentUnavailable(
                f"cannot start the ranks at {launch.master_address}:{launch.master_port}: "
                f"{reason}; check `master_address`, `master_port` and that every node started"
            ) from None


def _watch(launch: Launch) -> Watch:
    return Watch(
        address=launch.master_address,
        port=launch.master_port,
        node_rank=launch.node_rank,
        num_nodes=launch.num_nodes,
    )


def _check_master(launch: Launch) -> None:
    """Machine 0 has an address and, seen from the others, answers within the time to join."""
    try:
        socket.getaddrinfo(launch.master_address, launch.master_port)
    except (OSError, UnicodeError):
        raise UserError(
            f"`master_address` {launch.master_address}: no such host; give the name or address of "
            "machine 0"
        ) from None
    if launch.node_rank == 0:
        return
    end = time.monotonic() + _JOIN_S
    while time.monotonic() < end:
        try:
            socket.create_connection((launch.master_address, launch.master_port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise EnvironmentUnavailable(
        f"machine 0 does not answer at {launch.master_address}:{launch.master_port} for {_JOIN_S} "
        "s; check `master_address`, `master_port` and that it started"
    )


def _config(launch: Launch) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    meeting: dict[str, Any] = {
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "127.0.0.1:0",
        "local_addr": "127.0.0.1",
    }
    if launch.num_nodes > 1:
        meeting = {
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{launch.master_address}:{launch.master_port}",
            "rdzv_configs": {"rank": launch.node_rank, "timeout": _JOIN_S},
        }
    fields = {field.name for field in dataclasses.fields(LaunchConfig)}
    if "shutdown_timeout" in fields:
        meeting["shutdown_timeout"] = SHUTDOWN_S
    return LaunchConfig(
        min_nodes=launch.num_nodes,
        max_nodes=launch.num_nodes,
        nproc_per_node=launch.ranks_per_node,
        run_id=f"weft-{os.getpid()}" if launch.num_nodes == 1 else "weft",
        max_restarts=0,
        monitor_interval=0.1,
        **meeting,
    )


def _variables(launch: Launch) -> dict[str, str]:
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    threads = max(1, cores // launch.ranks_per_node)
    variables = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        FIRST_LOCAL_RANK: str(launch.first_local_rank),
    }
    if launch.master_address in ("127.0.0.1", "localhost"):
        variables["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return variables


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's launcher from logging what our own one-line error says."""
    handlers = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        for sig, handler in handlers.items():
            signal.signal(sig, handler)


def _first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[WeftError, bool]:
    """The cause: a killed rank before one that raised, before those that lost a peer.

    With it whether even that one only followed a failure elsewhere.
    """
    rank, failure = min(
        failures.items(), key=lambda item: (_consequence(item[1]), item[1].timestamp)
    )
    follows = _consequence(failure) == _FOLLOWS
    if failure.exitcode < 0:
        killed = LostRankError(
            f"rank {rank} was killed by {failure.signal_name()} (process {failure.pid}); "
            "the other ranks were ended"
        )
        return killed, follows
    message, exit_code = _message(failure)
    names_itself = exit_code == 2 or _extra(failure).get("names_rank")
    text = message if names_itself else f"rank {rank}: {message}"
    return error_of(text, exit_code), follows


def _consequence(failure: ProcessFailure) -> int:
    """0: killed from outside; 1: raised by itself; 2: followed another rank's failure."""
    if failure.exitcode < 0:
        return _FOLLOWS if -failure.exitcode == signal.SIGTERM else 0
    return _FOLLOWS if _extra(failure).get("follows") else 1


def _message(failure: ProcessFailure) -> tuple[str, int]:
    extra = _extra(failure)
    if extra:
        return str(extra["text"]), int(extra["exit_code"])
    return f"ended with exit code {failure.exitcode}", failure.exitcode


def _extra(failure: ProcessFailure) -> dict[str, Any]:
    """What launch/worker.py left in the rank's error file, if it came to that."""
    message: Any = failure.message
    return dict(message.get("extraInfo", {})) if isinstance(message, dict) else {}
