"""The mailbox protocol of comm.cuh, played word by word under adversarial scheduling."""

from __future__ import annotations

import random
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EMPTY = -1
WORDS = 2  # of a vector: enough to be seen apart
Vector = tuple[int, ...]


class Fabric:
    """Mailboxes of all ranks and the words that are still under way to them."""

    def __init__(self, num_ranks: int, num_mailboxes: int) -> None:
        self.num_ranks = num_ranks
        self.num_mailboxes = num_mailboxes
        self.words: dict[tuple[int, int, str, int, int], int] = {}
        self.under_way: list[tuple[tuple[int, int, str, int, int], int]] = []

    def push(self, to: int, call: int, box: str, slot: int, vector: Vector) -> None:
        for word, value in enumerate(vector):
            place = (to, call % self.num_mailboxes, box, slot, word)
            self.under_way.append((place, value))

    def deliver(self, index: int) -> None:
        place, value = self.under_way.pop(index)
        self.words[place] = value

    def take(self, rank: int, call: int, box: str, slot: int) -> Vector | None:
        """The vector of a slot if it is whole; the slot is idle again afterwards."""
        places = [(rank, call % self.num_mailboxes, box, slot, word) for word in range(WORDS)]
        found = tuple(self.words.get(place, EMPTY) for place in places)
        if EMPTY in found:
            return None
        for place in places:
            self.words[place] = EMPTY
        return found


def total(vectors: list[Vector]) -> Vector:
    return tuple(sum(column) for column in zip(*vectors, strict=True))


def contribution(rank: int, call: int, part: int) -> Vector:
    return tuple(1 + word + 10 * part + 1000 * rank + 100000 * call for word in range(WORDS))


def receive(fabric: Fabric, rank: int, call: int, box: str, slots: list[int]) -> Generator:
    """Wait for all slots, in whatever order they come."""
    got: dict[int, Vector] = {}
    while len(got) < len(slots):
        for slot in slots:
            if slot not in got and (vector := fabric.take(rank, call, box, slot)) is not None:
                got[slot] = vector
        yield
    return got


def one_shot(fabric: Fabric, rank: int, calls: range, results: list) -> Generator:
    others = [r for r in range(fabric.num_ranks) if r != rank]
    for call in calls:
        own = contribution(rank, call, 0)
        for other in others:
            fabric.push(other, call, "exchange", rank, own)
            yield
        got = yield from receive(fabric, rank, call, "exchange", others)
        results.append([total([own, *got.values()])])


def two_shot(fabric: Fabric, rank: int, calls: range, results: list) -> Generator:
    others = [r for r in range(fabric.num_ranks) if r != rank]
    for call in calls:
        for other in others:
            fabric.push(other, call, "scatter", rank, contribution(rank, call, other))
            yield
        got = yield from receive(fabric, rank, call, "scatter", others)
        mine = total([contribution(rank, call, rank), *got.values()])
        for other in others:
            fabric.push(other, call, "gather", rank, mine)
            yield
        parts = yield from receive(fabric, rank, call, "gather", others)
        results.append([mine if r == rank else parts[r] for r in range(fabric.num_ranks)])


def expected(num_ranks: int, call: int, num_parts: int) -> list[Vector]:
    return [
        total([contribution(rank, call, part) for rank in range(num_ranks)])
        for part in range(num_parts)
    ]


def mixed(fabric: Fabric, rank: int, calls: range, results: list) -> Generator:
    """Both algorithms in turn on the same mailboxes."""
    for call in calls:
        algorithm = one_shot if call % 3 else two_shot
        yield from algorithm(fabric, rank, range(call, call + 1), results)


ALGORITHMS = {"one_shot": one_shot, "two_shot": two_shot, "mixed": mixed}


def run(name: str, num_ranks: int, num_mailboxes: int, first: int, seed: int) -> bool:
    """Play five calls; whether every rank got every sum. A rank may be held back for long."""
    rng, calls = random.Random(seed), range(first, first + 5)
    fabric = Fabric(num_ranks, num_mailboxes)
    results: list[list] = [[] for _ in range(num_ranks)]
    running = {r: ALGORITHMS[name](fabric, r, calls, results[r]) for r in range(num_ranks)}
    favour, idle = rng.sample(range(num_ranks), num_ranks), 0
    while running and idle < 3000:
        idle += 1
        if fabric.under_way and rng.random() < 0.6:
            fabric.deliver(rng.randrange(len(fabric.under_way)))
            idle = 0
            continue
        if rng.random() < 0.02:
            favour = rng.sample(range(num_ranks), num_ranks)
        rank = favour[min(int(rng.expovariate(1.0)), num_ranks - 1)]
        if rank in running and next(running[rank], "done") == "done":
            del running[rank]
            idle = 0
    if running:
        return False
    parts = {len(result) for result in results[0]}
    assert parts <= {1, num_ranks}
    return all(
        results[rank][i] == expected(num_ranks, call, len(results[rank][i]))
        for rank in range(num_ranks)
        for i, call in enumerate(calls)
    )


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(ALGORITHMS)),
    st.integers(2, 5),
    st.sampled_from([1, 2, 2**32 - 2, 2**32 - 1]),
    st.integers(0, 2**30),
)
def test_two_mailboxes_suffice(name: str, num_ranks: int, first: int, seed: int) -> None:
    assert run(name, num_ranks, 2, first, seed)


@pytest.mark.parametrize("name", ["one_shot", "mixed"])
def test_one_mailbox_does_not(name: str) -> None:
    """(Two-shot alone would do with one: its two steps take turns like two mailboxes.)"""
    assert not all(run(name, 3, 1, 0, seed) for seed in range(200))


def test_a_poll_that_looks_at_one_word_reads_torn_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Fabric, rank: int, call: int, box: str, slot: int) -> Vector | None:
        places = [(rank, call % self.num_mailboxes, box, slot, word) for word in range(WORDS)]
        found = tuple(self.words.get(place, EMPTY) for place in places)
        if found[0] == EMPTY:
            return None
        for place in places:
            self.words[place] = EMPTY
        return found

    monkeypatch.setattr(Fabric, "take", careless)
    assert not all(run("one_shot", 3, 2, 0, seed) for seed in range(50))
