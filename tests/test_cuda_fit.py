# SPDX-License-Identifier: Apache-2.0
"""Fits with ``--device cuda``, the CUDA kernels run by numba's simulator, end where those on the CPU end."""

from pathlib import Path

import pytest
from simulated import errors_of

CASES = Path(__file__).with_name("cuda_fit_cases.py")

# Relative to the largest number: rounding of float32, taken along by a few steps.
TOLERANCE = {
    "stage": 1e-5,
    "pose_step": 1e-5,
    "weights": 1e-6,
    "whole_fit": 1e-5,
    "arrays_that_are_elsewhere": 3e-6,
    "sr_member": 2e-5,
}
TOGETHER = (("stage", "weights", "sr_member"), ("pose_step", "whole_fit", "arrays_that_are_elsewhere"))


@pytest.fixture(scope="module")
def errors():
    return errors_of(CASES, TOGETHER)


@pytest.mark.parametrize("case", TOLERANCE)
def test_the_device_ends_where_the_cpu_does(errors, case):
    large = {name: value for name, value in errors[case].items() if not value <= TOLERANCE[case]}
    assert errors[case]
    assert not large
