# SPDX-License-Identifier: Apache-2.0
"""The script of the GPU benchmark runs through, part by part, in the simulator."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.sh"
RESULTS = {
    "correctness": "same_bits",
    "svr_fit": "seconds",
    "sr_fit": "one_field_s",
    "agreement": "weights",
    "epochs": "graph",
    "paper": "epoch_s",
    "rates": "ns_per_useful_pair",
    "grid": "rate",
    "launches": "project_us",
    "registers": "none",
    "small_cases": "against_oracle",
}


def test_the_gpu_benchmark_runs_through(tmp_path):
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: there are no wheels for this platform")
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [str(SCRIPT), str(out), "--smoke"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHON": sys.executable, "NUMBA_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["failed"] == []
    assert found["smoke"] is True
    assert found["ratio_vs_paper_torch"] > 0
    for part, name in RESULTS.items():
        assert name in found[part]
    assert found["correctness"]["same_bits"] is True
    errors = [
        v for part in ("correctness", "grid") for k, v in found[part].items() if isinstance(v, float) and k != "part_s"
    ]
    assert max(errors) < 1e-4
    assert found["epochs"]["plain"]["loss"] == found["epochs"]["graph"]["loss"]
    assert found["svr_fit"]["device"] == found["sr_fit"]["device"] == "cuda (simulator)"
    assert found["sr_fit"]["voxels"] == 8**3
