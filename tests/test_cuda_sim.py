# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, run by numba's simulator on tiny problems, agree with the CPU kernels and the oracle."""

from pathlib import Path

import pytest
from simulated import errors_of

CASES = Path(__file__).with_name("cuda_sim_cases.py")

# Relative to the largest number. Sums of float32 in another order; needles lose digits to cancellation.
TOLERANCE = {
    "slices": 1e-5,
    "pose_solver": 1e-5,
    "against_oracle": 3e-6,
    "odd_gaussians": 1e-4,
    "grids": 1e-5,
    "little_memory": 2e-6,
    "kept_lists": 0,
    "margin_bound": 0,
    "epochs": 0,
}
TOGETHER = (
    ("slices", "pose_solver", "against_oracle", "odd_gaussians", "grids", "kept_lists", "margin_bound"),
    ("little_memory", "epochs"),
)  # one process each, at the same time


@pytest.fixture(scope="module")
def errors():
    return errors_of(CASES, TOGETHER)


@pytest.mark.parametrize("case", TOLERANCE)
def test_the_simulator_agrees(errors, case):
    large = {name: value for name, value in errors[case].items() if not value <= TOLERANCE[case]}
    assert errors[case]
    assert not large
