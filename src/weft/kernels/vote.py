"""Ranks that set something up together: each hears all others, and all go on or fail alike.

What they say goes through the rendezvous store: nothing runs on a device, every wait is
bounded, and a rank that does not come is named.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store, _world

from weft.errors import CommunicationError, EnvironmentUnavailable, UserError, WeftError

TIMEOUT_S = 120.0

T = TypeVar("T")

_turns: Final[Counter[str]] = Counter()


def gather(group: dist.ProcessGroup, value: Any) -> list[Any]:
    """The (picklable) ``value`` of every rank of ``group``, in rank order, on every rank.

    Raises CommunicationError that names the ranks which do not come within TIMEOUT_S, also on
    those when they come later; UserError for a group that was destroyed.
    """
    require_open(group)
    store, ranks = _world.pg_map[group][1], dist.get_process_group_ranks(group)
    name = f"weft/{group.group_name}/{','.join(map(str, ranks))}"
    turn, own = _turns[name], dist.get_rank(group)
    _turns[name] += 1
    keys = [f"{name}/{turn}/{place}" for place in range(len(ranks))]
    try:
        store.set(keys[own], pickle.dumps((value, None)).hex())
        missing = _wait(store, keys)
        if missing:
            names = ", ".join(str(ranks[place]) for place in missing)
            reason = f"rank {ranks[own]} waited {TIMEOUT_S:g} s for rank {names} in vain"
            store.set(keys[own], pickle.dumps((None, reason)).hex())
            raise CommunicationError(f"all-reduce set-up: {reason}; every rank must call it")
        said = [pickle.loads(bytes.fromhex(store.get(key).decode())) for key in keys]  # noqa: S301 - our own ranks
        if turn:
            store.delete_key(f"{name}/{turn - 1}/{own}")
    except RuntimeError as error:
        raise CommunicationError(f"all-reduce set-up: {error}") from error
    failure = next((reason for _, reason in said if reason), None)
    if failure:
        raise CommunicationError(f"all-reduce set-up: {failure}")
    return [answer for answer, _ in said]


def agree(group: dist.ProcessGroup, value: Any, problem: WeftError | str | None) -> list[Any]:
    """``gather``, unless a rank has a problem: then the first one's is raised on all ranks.

    A text becomes EnvironmentUnavailable.
    """
    answers = gather(group, (value, problem))
    for rank, (_, failure) in enumerate(answers):
        if isinstance(failure, WeftError):
            raise failure
        if failure is not None:
            raise EnvironmentUnavailable(f"rank {rank}: {failure}")
    return [answer for answer, _ in answers]


def together(group: dist.ProcessGroup, make: Callable[[], T]) -> list[T]:
    """What ``make`` gives on every rank; the WeftError of any rank on all of them."""
    value, problem = None, None
    try:
        value = make()
    except WeftError as error:
        problem = error
    return agree(group, value, problem)


def require_open(group: dist.ProcessGroup) -> None:
    """UserError where torch.distributed does not know ``group`` (any more)."""
    if group not in _world.pg_map:
        raise UserError("all_reduce: the process group is closed; make a new one")


def _wait(store: Store, keys: list[str]) -> list[int]:
    """Places of ``keys`` that are not set after TIMEOUT_S."""
    try:
        store.wait(keys, timedelta(seconds=TIMEOUT_S))
    except RuntimeError:
        return [place for place, key in enumerate(keys) if not store.check([key])]
    return []
