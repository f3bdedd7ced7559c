# SPDX-License-Identifier: Apache-2.0
"""``make slurm-test``: real reconstructions on a real Slurm; minutes, and so not part of ``make test``."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from slurm.one_machine import any_slurm

from gsbids.simulate.acquire import Acquisition
from gsbids.simulate.dataset import SimulationSettings, simulate_dataset

OPTIONS = [
    "--sloppy",
    "--output-resolution",
    "2",
    "--mask-mode",
    "otsu",
    "--no-denoise",
    "--no-n4",
    "--omp-nthreads",
    "1",
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Variables with which Slurm's commands work."""
    with any_slurm(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two subjects of two stacks; those of sub-02 say that their voxels are far larger than they are.

    That is nothing the start could know: their masks, which are made in steps, come out larger than any brain.
    """
    root = tmp_path_factory.mktemp("data") / "bids"
    for subject in ("01", "02"):
        simulate_dataset(
            root,
            SimulationSettings(
                subject=subject,
                phantom_voxel=1.2,
                brain_ml=80.0,
                truth_resolution=1.5,
                angle=4.0,
                shift=2.5,
                orientations=("axial", "coronal"),
                acquisition=Acquisition(in_plane=1.6, thickness=4.0, spacing=4.0, noise=0.01),
            ),
        )
    for run_number in (1, 2):
        path = root / "sub-02" / "anat" / f"sub-02_run-{run_number}_T2w.nii.gz"
        image = nib.load(path)
        affine = image.affine @ np.diag([2.5, 2.5, 2.5, 1.0])
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj).copy(), affine), path)
    return root


def run(data, folder: Path, slurm, *options) -> subprocess.CompletedProcess:
    (folder / "here").mkdir(exist_ok=True)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "gsbids",
            data,
            folder / "out",
            "participant",
            "-w",
            folder / "work",
            *OPTIONS,
            *options,
        ],
        env=os.environ | slurm,
        cwd=folder / "here",
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def plugin_file(folder: Path, plugin: str) -> Path:
    path = folder / "plugin.yml"
    path.write_text(
        json.dumps({"plugin": plugin, "plugin_args": {"sbatch_args": "--time=00:30:00", "poll_interval": 1}})
    )
    return path


def spans(slurm, since: datetime) -> dict[str, list[tuple[datetime, datetime]]]:
    """When jobs of each subject ran."""
    done = subprocess.run(
        ["squeue", "-h", "-t", "all", "-o", "%j|%S|%e"],
        env=os.environ | slurm,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list] = {"sub_01": [], "sub_02": []}
    for line in done.stdout.splitlines():
        name, begin, end = line.split("|")
        subject = next((key for key in found if key in name), None)
        if subject and "T" in begin and "T" in end and datetime.fromisoformat(begin) >= since:
            found[subject].append((datetime.fromisoformat(begin), datetime.fromisoformat(end)))
    return found


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("sub-01/anat/*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Outputs of the good subject without Slurm."""
    folder = tmp_path_factory.mktemp("alone")
    done = run(data, folder, {}, "--participant-label", "01", "--nprocs", "1")
    assert done.returncode == 0, done.stderr
    return hashes(folder / "out")


@pytest.mark.parametrize("plugin", ["SLURM", "SLURMGraph"])
def test_two_subjects_of_which_one_fails(data, slurm, alone, tmp_path, plugin):
    began = datetime.now().replace(microsecond=0)
    done = run(data, tmp_path, slurm, "--use-plugin", plugin_file(tmp_path, plugin))
    out = tmp_path / "out"
    assert done.returncode == 1, done.stderr
    assert re.search("sub-02_T2w: step choose failed: .*otsu: the mask made from the stack holds", done.stderr)
    assert "1 of 2 reconstructions done" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    # The other is finished, with the same bits as without Slurm; the report of the one that failed says why.
    assert hashes(out) == alone
    assert "the mask made from the stack holds" in (out / "sub-02.html").read_text(encoding="utf-8")
    assert "the mask made from the stack holds" not in (out / "sub-01.html").read_text(encoding="utf-8")
    # They ran side by side: jobs of the one began before those of the other had ended. (Single jobs take less than the
    # second to which Slurm tells times.)
    first, second = (
        (min(begin for begin, _ in jobs), max(end for _, end in jobs)) for jobs in spans(slurm, began).values()
    )
    assert first[0] < second[1]
    assert second[0] < first[1]
    # What jobs print is in the working folder.
    assert list((tmp_path / "here").iterdir()) == []
    assert list((tmp_path / "work").glob("*/gsbids_wf/batch/*.out"))
    assert (
        subprocess.run(["squeue", "-h"], env=os.environ | slurm, capture_output=True, text=True, check=True).stdout
        == ""
    )


def documented(script: bool, **changes: str) -> str:
    """The script for sbatch of docs/clusters.md, or the commands that send it, with other text in some places."""
    text = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
    chapter = text.partition("## Many subjects")[2].partition("\n## ")[0]
    _, body, after = re.split(r"^```(?:bash)?\n", chapter, flags=re.MULTILINE)
    found = body if script else "\n".join(line[4:] for line in after.splitlines() if line.startswith("    "))
    for old, new in changes.items():
        assert old in found, f"docs/clusters.md does not say {old}"
        found = found.replace(old, new)
    return found


@pytest.fixture
def documented_job(data, slurm, tmp_path):
    """Send the array of docs/clusters.md and what comes after it; gives their job numbers."""
    (tmp_path / "bin").mkdir()
    shutil.copy(Path(__file__).with_name("apptainer.py"), tmp_path / "bin" / "apptainer")
    image = tmp_path / "gsbids.sif"
    image.touch()
    folders = {"/data/study-gsbids": str(tmp_path / "out"), "/data/study": str(data)}
    (tmp_path / "gsbids.sbatch").write_text(
        documented(
            True,
            **{
                "-d masks=/data/derivatives/masks": " ".join(OPTIONS),
                **folders,
                "/scratch/$USER/gsbids": str(tmp_path / "scratch"),
                "/containers/gsbids.sif": str(image),
                "--cpus-per-task=8": "--cpus-per-task=1",
                "--mem=16G": "--mem=3G",
            },
        )
    )
    send = documented(False, **folders) + "\necho $job\n"
    variables = os.environ | slurm | {"GSBIDS_PYTHON": sys.executable}
    variables["PATH"] = f"{tmp_path / 'bin'}:{variables['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", send], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    group, array = (word for word in done.stdout.split() if word.isdigit())
    return array, group


def wait_for_the_end(slurm, seconds: float = 1200) -> None:
    limit = time.monotonic() + seconds
    while subprocess.run(["squeue", "-h"], env=os.environ | slurm, capture_output=True, check=True).stdout:
        assert time.monotonic() < limit
        time.sleep(1)


def state(slurm, job: str) -> tuple[str, int]:
    """State and exit code of a job."""
    done = subprocess.run(
        ["squeue", "-h", "-t", "all", "-j", job, "-O", "State,exit_code"],
        env=os.environ | slurm,
        capture_output=True,
        text=True,
        check=True,
    )
    name, status = done.stdout.split()
    return name, os.waitstatus_to_exitcode(int(status))


def test_the_documented_job_array(data, documented_job, slurm, alone, tmp_path):
    array, group = documented_job
    wait_for_the_end(slurm)
    out, logs = tmp_path / "out", sorted((tmp_path / "logs").iterdir())
    assert [path.name for path in logs] == [f"gsbids-{array}_0.log", f"gsbids-{array}_1.log"]
    assert state(slurm, f"{array}_0") == ("COMPLETED", 0), logs[0].read_text()
    assert state(slurm, f"{array}_1") == ("FAILED", 1), logs[1].read_text()
    assert hashes(out) == alone
    assert "the mask made from the stack holds" in logs[1].read_text(encoding="utf-8")
    assert "the mask made from the stack holds" in (out / "sub-02.html").read_text(encoding="utf-8")
    # The table of the group was made after both, one of which had failed.
    assert state(slurm, group) == ("COMPLETED", 0), (tmp_path / f"slurm-{group}.out").read_text()
    page = next(out.glob("group*.html")).read_text(encoding="utf-8")
    assert "sub-01" in page
    assert "sub-02" in page
