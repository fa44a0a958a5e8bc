"""The CPU's all-reduce by its own code under an adversary (docs/all-reduce-proof.md)."""

from __future__ import annotations

import pytest

from adversary import programs
from adversary.program_faults import FAULTS, Fault

MOST = 1000


def test_no_schedule_of_any_programs_goes_wrong() -> None:
    for seed in range(250):
        programs.check(programs.draw(seed))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_planted_in_the_programs_is_found(fault: Fault) -> None:
    for seed in range(MOST):
        try:
            programs.check(programs.draw(seed, fault.lose), (fault.patch,))
        except programs.Wrong:
            return
    pytest.fail(f"not found in {MOST} cases")
