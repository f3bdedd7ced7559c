# SPDX-License-Identifier: Apache-2.0
"""Fits with ``--device cuda``, the CUDA kernels run by numba's simulator, end where those on the CPU end."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cuda_fit_cases.py")

# Relative to the largest number: rounding of float32, taken along by a few steps.
TOLERANCE = {"stage": 1e-5, "pose_step": 1e-5, "weights": 1e-6, "whole_fit": 1e-5, "arrays_that_are_elsewhere": 3e-6,
             "sr_member": 2e-5}
TOGETHER = (("stage", "weights", "sr_member"), ("pose_step", "whole_fit", "arrays_that_are_elsewhere"))


@pytest.fixture(scope="module")
def errors():
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: there are no wheels for this platform")
    environment = {**os.environ, "GSBIDS_BACKEND": "sim", "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, str(CASES), *names], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for names in TOGETHER]
    found = {}
    for process in running:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
        found |= json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", TOLERANCE)
def test_the_device_ends_where_the_cpu_does(errors, case):
    large = {name: value for name, value in errors[case].items() if not value <= TOLERANCE[case]}
    assert errors[case]
    assert not large
