"""The launchers of several machines agree on the cause, however late one of them looks."""

from __future__ import annotations

import socket
import threading
import time

from weft.errors import LostRankError
from weft.launch import watch
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
