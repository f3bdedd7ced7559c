# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, run by numba's simulator on tiny problems, agree with the CPU kernels and the oracle."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cuda_sim_cases.py")

# Relative to the largest number. Sums of float32 in another order; needles lose digits to cancellation.
TOLERANCE = {"against_cpu": 1e-5, "against_oracle": 3e-6, "odd_gaussians": 1e-4, "plans_and_chunks": 2e-6, "grid": 1e-5}


@pytest.fixture(scope="module")
def errors():
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: pip install 'gsbids[dev-ptx]'")
    environment = {**os.environ, "GSBIDS_BACKEND": "sim", "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, str(CASES)], env=environment, capture_output=True, text=True, check=False,
                          timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", TOLERANCE)
def test_the_simulator_agrees(errors, case):
    large = {name: value for name, value in errors[case].items() if not value <= TOLERANCE[case]}
    assert not large


def test_without_numba_cuda_the_message_says_what_to_install():
    code = ("import sys; sys.modules['numba.cuda'] = None\n"
            "from gsbids.kernels import device\n"
            "try:\n    device.numba_cuda()\nexcept device.DeviceError as error:\n    print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "gsbids[gpu]" in done.stdout, done.stderr


def test_chunks_are_consecutive_and_fit():
    from gsbids.errors import DeviceError
    from gsbids.kernels import device

    assert device.chunks([3, 3, 3, 9, 0, 1], 10, 90) == [(0, 3), (3, 5), (5, 6)]
    assert device.chunks([], 10, 90) == []
    with pytest.raises(DeviceError, match="slice 1 needs"):
        device.chunks([1, 10], 10, 90)


def test_less_memory_is_tried_when_it_runs_out(monkeypatch):
    import torch

    from gsbids.errors import DeviceError
    from gsbids.kernels import device

    monkeypatch.setenv("GSBIDS_DEVICE_BYTES", "800")
    tried = []

    def work(available, enough=200):
        tried.append(available)
        if available > enough:
            raise torch.cuda.OutOfMemoryError
        return "done"

    assert device.with_smaller_chunks(work, torch.device("cpu")) == "done"
    assert tried == [800, 400, 200]
    with pytest.raises(DeviceError, match="ran out of memory 4 times"):
        device.with_smaller_chunks(lambda available: work(available, 0), torch.device("cpu"))


def test_an_unknown_backend_is_refused(monkeypatch):
    from gsbids.errors import DeviceError
    from gsbids.kernels import device

    monkeypatch.setenv("GSBIDS_BACKEND", "tpu")
    with pytest.raises(DeviceError, match="cpu, cuda, sim"):
        device.backend()
