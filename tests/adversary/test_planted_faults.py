"""The adversary finds faults that are planted in the kernels' real source."""

from __future__ import annotations

import pytest

from adversary import cases, machine
from adversary.faults import FAULTS, Fault
from adversary.kernels import KERNELS

pytestmark = pytest.mark.skipif(machine.COMPILER is None, reason=machine.NO_COMPILER)

MOST = 1000


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    kernels = [kernel for kernel in KERNELS if kernel.name in fault.kernels]
    for seed in range(fault.first_case, fault.first_case + MOST):
        case = cases.draw(seed, fault.shape, kernels, fault.clock, fault.lose)
        try:
            cases.check(case, kernels, (fault.patch,))
        except cases.Wrong:
            return
    pytest.fail(f"not found in {MOST} cases")


def test_a_patch_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(AssertionError, match="does not hold"):
        machine.load("", (), (("comm.cuh", "no such text", ""),))
