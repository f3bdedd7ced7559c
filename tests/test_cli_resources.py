# SPDX-License-Identifier: Apache-2.0
"""Threads and memory of a run: what is planned, what is refused, what a step may use."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from gsbids.cli.main import main
from gsbids.cli.running.resources import MAIN_GB, WAITING_GB, plan_budget
from gsbids.config import NipypeOptions
from gsbids.errors import InputError


@dataclass(frozen=True)
class Step:
    """What is asked of a node."""

    name: str
    mem_gb: float


STEPS = [Step("conform", 0.3), Step("fit", 2.0), Step("report", 1.5)]


@pytest.mark.parametrize(
    ("nprocs", "memory", "workers"),
    [(4, 16.0, 4), (4, MAIN_GB + 2.0, 1), (4, MAIN_GB + 2.0 + 2 * WAITING_GB, 3), (1, 16.0, 1)],
)
def test_memory_is_shared_out(nprocs, memory, workers):
    budget = plan_budget(NipypeOptions(nprocs=nprocs, memory_gb=memory), STEPS)
    assert budget.workers == workers
    assert budget.memory_gb >= 2.0 - 1e-9
    # Even while one step uses all that is planned with, and the other workers wait.
    assert MAIN_GB + budget.memory_gb + (workers - 1) * WAITING_GB <= memory + 1e-9


def test_a_step_that_does_not_fit():
    with pytest.raises(
        InputError,
        match=r"^--mem 2.3G: is too little: step fit needs about 2 GB, and 0.4 GB more are "
        r"for the program itself; give at least --mem 2.4G$",
    ):
        plan_budget(NipypeOptions(nprocs=4, memory_gb=2.3), STEPS)


@pytest.mark.parametrize("nprocs", ["1", "2"])
def test_little_memory_is_refused_before_anything_is_written(tiny_bids, tmp_path, capsys, nprocs):
    tiny = tiny_bids(stacks=2)
    code = main(
        [
            str(tiny.root),
            str(tmp_path / "out"),
            "participant",
            "-w",
            str(tmp_path / "work"),
            "-d",
            f"masks={tiny.masks}",
            "--nprocs",
            nprocs,
            "--mem",
            "1G",
        ]
    )
    assert code == 2
    assert "gsbids: error: --mem 1G: is too little: step fit needs about 2 GB" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bids", "bids-masks"]


PROBE = """
import os
os.environ.update(NUMBA_NUM_THREADS="3", OMP_NUM_THREADS="1")
import numba, torch, threadpoolctl
from nipype.interfaces.base import TraitedSpec, traits
from gsbids.interfaces.base import NodeInterface, limit_threads

class Spec(TraitedSpec):
    num_threads = traits.Int(1, usedefault=True)

class Probe(NodeInterface):
    input_spec = output_spec = Spec
    def _run_interface(self, runtime):
        blas = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
        print(torch.get_num_threads(), numba.get_num_threads(), sorted(blas))
        return runtime

limit_threads(3)  # as a step before has left it
Probe().run()
Probe(num_threads=2).run()
"""


def test_a_step_keeps_to_its_threads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.stdout.splitlines() == ["1 1 [1]", "2 2 [1]"], done.stderr
