"""The packet protocol under an adversary: right results, right errors, and planted faults found.

2,100 random cases; a longer run is ``python -m weft.allreduce.soak --cases 200000``.
"""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.emulator import Faults, ProtocolFault
from weft.allreduce.packets import LAST_EPOCH, buffer_index, next_epoch
from weft.allreduce.soak import check_case, main, random_case, run_cases
from weft.errors import CheckFailed

QUICK = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
RANDOMS = st.randoms(use_true_random=False)


@pytest.mark.parametrize("algorithm", PROGRAMS)
def test_every_algorithm_survives_the_adversary(algorithm):
    @settings(QUICK, max_examples=210)
    @given(RANDOMS)
    def run(rng):
        outcome = check_case(random_case(rng, algorithm))
        assert outcome.furthest_ahead <= 1

    run()


@settings(QUICK, max_examples=380)
@given(RANDOMS)
def test_algorithms_may_follow_each_other_on_the_same_buffers(rng):
    assert check_case(random_case(rng)).furthest_ahead <= 1


@settings(QUICK, max_examples=250)
@given(RANDOMS)
def test_a_lost_rank_gives_every_other_rank_the_right_error(rng):
    case = random_case(rng, lose=True)
    errors = check_case(case).errors
    for rank, error in errors.items():
        assert str(error).endswith(f"rank {rank} waited in vain")
        assert error.exit_code == 3
        assert " of all-reduce call " in str(error)


def find_fault(faults, enough, attempts=400):
    """Whether the emulator notices ``faults`` in ``enough`` of at most ``attempts`` cases."""
    found = 0
    for seed in range(attempts):
        try:
            check_case(random_case(random.Random(seed)), faults)
        except CheckFailed:
            found += 1
        if found == enough:
            return True
    return False


def test_one_buffer_instead_of_two_is_found():
    assert find_fault(Faults(single_buffer=True), enough=10)


def test_the_fault_of_one_buffer_is_named():
    cases = [random_case(random.Random(seed), "one_shot") for seed in range(100)]
    with pytest.raises(ProtocolFault, match="overwrites a word not yet read"):
        [check_case(case, Faults(single_buffer=True)) for case in cases]


def test_data_and_flag_read_apart_is_found():
    assert find_fault(Faults(split_words=True), enough=30)


def test_an_epoch_lap_without_clearing_is_found():
    assert find_fault(Faults(no_clear=True), enough=2)


def test_counting_an_epoch_for_an_empty_call_is_found():
    assert find_fault(Faults(epoch_for_empty=True), enough=1)


def test_no_fault_is_found_without_one():
    assert not find_fault(Faults(), enough=1, attempts=60)


def test_parity_alternates_over_the_wrap_and_zero_is_never_an_epoch():
    epoch = LAST_EPOCH - 3
    for _ in range(8):
        following = next_epoch(epoch)
        assert following != 0
        assert following < 2**32 - 1
        assert buffer_index(following) != buffer_index(epoch)
        epoch = following


def test_equal_cases_run_equally():
    case = random_case(random.Random(5), "hierarchical_doubling")
    first, second = check_case(case), check_case(case)
    for left, right in zip(first.results, second.results, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_long_run_has_a_command(capsys):
    main(["--cases", "500", "--processes", "1", "--seed", "7"])
    assert "500 cases, no fault" in capsys.readouterr().out
    assert run_cases(10, seed=1) <= 1
