# SPDX-License-Identifier: Apache-2.0
"""Nipype's Slurm plugins on a real Slurm of one machine; skipped where Slurm is not installed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm.one_machine import any_slurm

from gsbids.cli.main import main

PLUGINS = ("SLURM", "SLURMGraph")

whole = pytest.mark.skipif("GSBIDS_SLURM_TEST" not in os.environ, reason="takes minutes; make slurm-test runs it")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Variables with which Slurm's commands work."""
    try:
        context = any_slurm(tmp_path_factory.mktemp("slurm"))
        variables = context.__enter__()
    except RuntimeError as error:
        pytest.skip(f"no Slurm here: {error}")
    yield variables
    context.__exit__(None, None, None)


@pytest.fixture
def start(slurm, tmp_path):
    """``start(tiny, plugin, fake={...}, options=(...), **plugin_args)``: a run of a workflow that computes nothing."""

    def call(tiny, plugin, fake=None, options=(), **arguments) -> subprocess.Popen:
        (tmp_path / "plugin.yml").write_text(
            json.dumps({"plugin": plugin, "plugin_args": {"poll_interval": 0.5} | arguments})
        )
        environment = (
            os.environ | slurm | {"PYTHONPATH": str(Path(__file__).parent), "GSBIDS_FAKE": json.dumps(fake or {})}
        )
        environment.pop("LOGNAME", None)
        (tmp_path / "here").mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "fakes",
            tiny.root,
            tmp_path / "out",
            "participant",
            "-w",
            tmp_path / "work with blanks",
            "--nprocs",
            "1",
            "--use-plugin",
            tmp_path / "plugin.yml",
            *options,
        ]
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            cwd=tmp_path / "here",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return call


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=180)
    assert out == ""
    assert "Traceback" not in err
    return process.returncode, err


def jobs(slurm, states: str = "all") -> list[str]:
    """Names of jobs in these states."""
    done = subprocess.run(
        ["squeue", "-h", "-t", states, "-o", "%j"], env=os.environ | slurm, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_failure_stops_nobody_else(start, tiny_bids, tmp_path, plugin):
    code, err = finish(start(tiny_bids(subjects=("01", "02", "03")), plugin, fake={"02": "raise"}))
    assert code == 1
    assert "sub-02_T2w: step reconstruct failed: ValueError: the reconstruction went wrong; details" in err
    assert "2 of 3 reconstructions done" in err
    assert "ValueError: the reconstruction" in (tmp_path / "out" / "sub-02.html").read_text()
    # What jobs print is in the work folder, not where the command was given.
    assert list((tmp_path / "here").iterdir()) == []
    assert len(list((tmp_path / "work with blanks").glob("*/gsbids_wf/batch/*.out"))) == 3


@whole
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_second_run_submits_what_is_missing(start, slurm, tiny_bids, tmp_path, plugin):
    tiny = tiny_bids(subjects=("01", "02"))
    assert finish(start(tiny, plugin, fake={"02": "raise"}))[0] == 1
    before = len(jobs(slurm))
    code, err = finish(start(tiny, plugin))
    assert code == 0, err
    assert len(jobs(slurm)) == before + 1
    assert "sub-01_T2w reconstruct: kept from before" in err or "SLURMGraph" not in plugin


@whole
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_job_that_dies_is_told_of(start, tiny_bids, plugin):
    code, err = finish(start(tiny_bids(subjects=("01", "02")), plugin, fake={"01": "die"}))
    assert code == 1
    assert re.search(r"sub-01_T2w: step reconstruct failed: SlurmError: job \d+ ended as FAILED without a result", err)
    assert "1 of 2 reconstructions done" in err


@whole
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_job_that_is_cancelled_is_told_of(start, slurm, tiny_bids, plugin):
    process = start(tiny_bids(), plugin, fake={"01": "sleep"})
    wait_for_job(slurm)
    (name,) = jobs(slurm, "running")
    subprocess.run(["scancel", f"--name={name}"], env=os.environ | slurm, check=True)
    code, err = finish(process)
    assert code == 1
    assert re.search(r"SlurmError: job \d+ ended as CANCELLED without a result; it printed: .*CANCELLED", err)


@whole
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_job_that_slurm_does_not_take(start, tiny_bids, plugin):
    code, err = finish(start(tiny_bids(), plugin, sbatch_args="--mem=900000G", max_tries=0))
    assert code == 1
    assert "SlurmError: sbatch did not take the step gsbids_wf.sub_01_T2w_wf.reconstruct: sbatch: error: " in err


@whole
@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_interrupted_run_cancels_its_jobs(start, slurm, tiny_bids, plugin):
    process = start(tiny_bids(subjects=("01", "02")), plugin, fake={"01": "sleep", "02": "sleep"})
    wait_for_job(slurm)
    process.send_signal(signal.SIGTERM)
    code, err = finish(process)
    assert code == 130
    assert err.splitlines()[-1] == "gsbids: error: interrupted; the same command goes on from here"
    limit = time.monotonic() + 30
    while jobs(slurm, "pending,running,completing") and time.monotonic() < limit:
        time.sleep(0.5)
    assert jobs(slurm, "pending,running") == []


@whole
@pytest.mark.parametrize("plugin", PLUGINS)
def test_stop_on_first_crash(start, tiny_bids, tmp_path, plugin):
    subjects = ("01", "02", "03", "04")
    code, err = finish(
        start(
            tiny_bids(subjects=subjects),
            plugin,
            fake=dict.fromkeys(subjects, "raise"),
            options=["--stop-on-first-crash"],
        )
    )
    assert code == 1
    assert "not finished" in err


def wait_for_job(slurm, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not jobs(slurm, "running"):
        assert time.monotonic() < limit, "no job began"
        time.sleep(0.3)
    time.sleep(3)  # until it is in its step


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{sbatch_arg: --mem=8G}", "unknown key 'sbatch_arg' in plugin_args"),
        ("{sbatch_args: 8}", "sbatch_args in plugin_args is 8; give text"),
        ("{max_jobs: many}", "max_jobs in plugin_args is 'many'; give a number"),
        ('{sbatch_args: "--comment=\'a"}', "No closing quotation"),
    ],
)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_arguments_that_mean_nothing(tiny_bids, tmp_path, capsys, plugin, arguments, words):
    (tmp_path / "p.yml").write_text(f"plugin: {plugin}\nplugin_args: {arguments}\n")
    code = main([str(tiny_bids().root), str(tmp_path / "out"), "participant", "--use-plugin", str(tmp_path / "p.yml")])
    assert code == 2
    assert words in capsys.readouterr().err
