"""The launchers of several machines agree on the cause, however late one of them looks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from weft.errors import FrozenRankError, LostRankError
from weft.launch import siblings, watch
from weft.launch.bounded import within
from weft.launch.siblings import FrozenRanks
from weft.launch.watch import Watch


def test_machine_0_stays_until_the_others_know(monkeypatch):
    monkeypatch.setattr(watch, "LOOK_S", 0.05)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    place = {"address": "127.0.0.1", "port": port, "num_nodes": 3}
    first = Watch(node_rank=0, **place)
    first.__enter__()
    others = [Watch(node_rank=rank, **place) for rank in (1, 2)]

    def come_late(other: Watch, late_s: float) -> None:
        time.sleep(late_s)
        with other:
            other._told.wait(10)

    threads = [
        threading.Thread(target=come_late, args=(other, 1.0 + number))
        for number, other in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    first.cause_of(LostRankError("rank 0 was killed"), follows=False)
    time.sleep(0.3)
    first.__exit__()
    ended = [str(other.cause) for other in others]
    for thread in threads:
        thread.join()
    assert ended == ["rank 0 was killed"] * 2


@pytest.fixture
def rank_3() -> Iterator[subprocess.Popen]:
    child = subprocess.Popen(["sleep", "60"], env={"RANK": "3"})
    yield child
    child.kill()
    child.wait()


def test_a_rank_is_frozen_once_it_was_seen_stopped_for_long(rank_3, monkeypatch):
    """Seen again and again: a launcher that was stopped with its ranks has looked once."""
    monkeypatch.setattr(siblings, "LOOK_S", 3.0)
    frozen = FrozenRanks(os.getpid())
    for _ in range(2):  # stopped for 9 s, and well again
        rank_3.send_signal(signal.SIGSTOP)
        os.waitpid(rank_3.pid, os.WUNTRACED)
        for _ in range(3):
            frozen.check()
        rank_3.send_signal(signal.SIGCONT)
        os.waitpid(rank_3.pid, os.WCONTINUED)
        frozen.check()
    rank_3.send_signal(signal.SIGSTOP)
    os.waitpid(rank_3.pid, os.WUNTRACED)
    for _ in range(3):
        frozen.check()
    with pytest.raises(FrozenRankError, match="rank 3 does not answer"):
        frozen.check()
    assert rank_3.wait(5) == -signal.SIGKILL


def test_a_call_that_does_not_come_back_is_given_up_on():
    release = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, release.wait)
    release.set()
    assert within(5, release.wait) is True
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
