"""The kernels' own source under an adversary: 5,000 cases, none of which may go wrong.

``make adversary`` runs 500,000. What may happen in a case is told in docs/all-reduce-proof.md.
"""

from __future__ import annotations

import pytest

from adversary import cases, machine
from adversary.cases import LEAPS, PATIENT
from adversary.kernels import KERNELS
from adversary.shapes import QUICK

pytestmark = pytest.mark.skipif(machine.COMPILER is None, reason=machine.NO_COMPILER)

SETS = range(1000)
ENOUGH = 5000


def test_no_schedule_of_any_calls_goes_wrong() -> None:
    done = old_values = lost = 0
    for number in SETS:
        case = cases.any_case(number, QUICK)
        outcome = cases.check(case)
        done += case.schedules
        old_values += outcome.stale_loads
        lost += outcome.lost
    assert done >= ENOUGH
    assert old_values > done  # the adversary did its work
    assert lost > len(SETS) / 20


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("clock", "lose"), [(PATIENT, False), (PATIENT, True), (LEAPS, False)])
def test_every_kernel_alone(kernel: cases.Kernel, clock: int, lose: bool) -> None:
    shape = QUICK[-1]
    for seed in range(4 if kernel.cluster else 20):
        cases.check(cases.draw(seed, shape, [kernel], clock, lose), KERNELS)


def test_equal_cases_run_equally() -> None:
    case = cases.draw(5, QUICK[1], KERNELS)
    first, second = cases.check(case), cases.check(case)
    assert (first.steps, first.stale_loads) == (second.steps, second.stale_loads)
