# SPDX-License-Identifier: Apache-2.0
"""The command on a small simulated data set: the volume, the tree, the input untouched, killed and resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from trees import checksums

from gsbids.imaging.nifti import load_image, save_image
from gsbids.simulate.acquire import Acquisition
from gsbids.simulate.compare import average_of_stacks, compare_to_truth
from gsbids.simulate.dataset import SimulationSettings, simulate_dataset

SETTINGS = SimulationSettings(
    phantom_voxel=1.2,
    brain_ml=80.0,
    truth_resolution=1.5,
    angle=4.0,
    shift=2.5,
    acquisition=Acquisition(in_plane=1.6, thickness=4.0, spacing=4.0, noise=0.01),
)


def command(data, out: Path, work: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gsbids",
        str(data.root),
        str(out),
        "participant",
        "-d",
        f"masks={data.masks_root}",
        "-w",
        str(work),
        "--output-resolution",
        "1.5",
        "--nprocs",
        "2",
        "--participant-label",
        "01",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return simulate_dataset(tmp_path_factory.mktemp("end to end") / "bids", SETTINGS)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Output of an undisturbed run, and the input's checksums from before it."""
    folder = tmp_path_factory.mktemp("finished")
    before = checksums(data.root)
    done = subprocess.run(
        command(data, folder / "out", folder / "work"), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", before


def test_the_volume_is_better_than_the_average(data, finished, tmp_path):
    out, _ = finished
    volume = out / "sub-01" / "anat" / "sub-01_rec-gsvr_res-1p5_desc-preproc_T2w.nii.gz"
    ours = compare_to_truth(volume, data.truth, data.truth_mask)
    average = save_image(tmp_path / "average.nii.gz", *average_of_stacks(data.stacks, data.masks, 1.5))
    theirs = compare_to_truth(average, data.truth, data.truth_mask)
    assert ours.psnr > theirs.psnr + 2.0
    assert ours.ncc > theirs.ncc


def test_the_saved_model_gives_the_volume_again(finished, tmp_path):
    """``gsbids sample``: on its own grid the volume, in other voxels the same brain, masked nothing else."""
    anat = finished[0] / "sub-01" / "anat"
    model, name = anat / "sub-01_rec-gsvr_desc-gaussians_model.npz", "sub-01_rec-gsvr_res-1p5_desc-{}.nii.gz"
    unmasked, mask = anat / name.format("unmasked_T2w"), anat / name.format("brain_mask")
    turned = ["--transform", anat / "sub-01_rec-gsvr_from-T2w_to-template_mode-image_xfm.txt"]  # the volume lies so
    made = {}
    for key, options in {
        "like": ["--like", unmasked],
        "coarse": ["--spacing", "2"],
        "fine": ["--like", unmasked, "--factor", "2", "--mask", mask],
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "gsbids", "sample", model, tmp_path / f"{key}.nii.gz", *options, *turned],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        made[key] = load_image(tmp_path / f"{key}.nii.gz")
    volume, affine = load_image(unmasked)
    np.testing.assert_allclose(made["like"][0], volume, atol=1e-3 * volume.max())
    np.testing.assert_allclose(made["like"][1], affine, atol=1e-5)
    inside = load_image(mask)[0] > 0
    # What is in the published volume is in the sampled one, wherever its voxels are.
    fine = made["fine"][0]
    assert fine.shape == tuple(2 * n for n in volume.shape)
    near = fine.reshape(*np.ravel([(n, 2) for n in volume.shape])).mean((1, 3, 5))
    assert np.corrcoef(near[inside], volume[inside])[0, 1] > 0.99
    assert (fine == 0).mean() > 0.3
    # Without a grid of another image it is that of the Gaussians, and holds the brain.
    coarse, at = made["coarse"]
    np.testing.assert_allclose(np.linalg.norm(at[:3, :3], axis=0), 2.0, rtol=1e-6)
    corners = np.linalg.inv(at) @ affine @ np.c_[np.argwhere(inside), np.ones(inside.sum())].T
    assert (corners[:3].min(1) > -0.5).all()
    assert (corners[:3].max(1) < np.array(coarse.shape) - 0.5).all()
    refused = subprocess.run(
        [sys.executable, "-m", "gsbids", "sample", model, tmp_path / "x.nii.gz", "--factor", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert refused.returncode == 2
    assert "has no voxels that others could be finer than" in refused.stderr


def test_the_input_is_untouched(data, finished):
    assert checksums(data.root) == finished[1]


def test_the_official_validator_passes(finished, official_errors):
    assert official_errors(finished[0]) == []


def test_the_report_needs_nothing_from_outside(finished):
    page = (finished[0] / "sub-01.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert page.count("<script") == 1  # the sliders' own, inline
    assert page.count("data:image/png;base64,") > 20  # planes, stacks, differences
    for section in (
        "Summary",
        "Viewer",
        "Masks",
        "Excluded",
        "Stacks",
        "Motion",
        "Convergence",
        "Methods",
        "Run",
        "Help",
    ):
        assert f">{section}</h2>" in page
    assert ">Date</dt>" in page
    assert "participant" in page.partition(">Command</dt>")[2].partition("</dd>")[0]


def test_simulated_stacks_are_in_the_place_of_the_acquired(data, finished):
    """On the acquired grid, and slice by slice like it; the median, as some slices lost their signal."""
    for run, path in enumerate(data.stacks, start=1):
        simulated, affine = load_image(finished[0] / "sub-01" / "anat" / f"sub-01_run-{run}_desc-simulated_T2w.nii.gz")
        acquired, expected = load_image(path)
        np.testing.assert_allclose(affine, expected, atol=1e-5)
        assert simulated.shape == acquired.shape
        mask = load_image(data.masks[run - 1])[0] > 0
        alike = [
            np.corrcoef(simulated[..., k][m], acquired[..., k][m])[0, 1]
            for k, m in enumerate(np.moveaxis(mask, 2, 0))
            if m.sum() > 20
        ]
        assert np.median(alike) > 0.95


def test_killed_and_started_again_it_ends_with_the_same_bits(data, finished, tmp_path):
    """Killed at three stages: while stacks are prepared, in the fit, and while outputs are written."""
    out, work = tmp_path / "out", tmp_path / "work"
    killed = 0
    for pattern in ("**/n4/*.nii.gz", "**/svr_wf/fit/_inputs.pklz", "**/svr_wf/sample/volume.nii.gz"):
        process = subprocess.Popen(
            command(data, out, work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline and not any(work.glob(pattern)):
            time.sleep(0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 3
    done = subprocess.run(command(data, out, work), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert checksums(out) == checksums(finished[0])


def test_one_spoilt_subject_stops_nobody_else(data, tmp_path):
    """Sub-02 has a truncated stack: it is named, sub-01 is planned, and the exit code says that not all is well."""
    root = tmp_path / "bids"
    shutil.copytree(data.root, root)
    shutil.copytree(root / "sub-01", root / "sub-02")
    for path in sorted((root / "sub-02" / "anat").iterdir()):
        path.rename(path.with_name(path.name.replace("sub-01", "sub-02")))
    spoilt = root / "sub-02" / "anat" / "sub-02_run-1_T2w.nii.gz"
    spoilt.write_bytes(spoilt.read_bytes()[:2000])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gsbids",
            str(root),
            str(tmp_path / "out"),
            "participant",
            "--mask-mode",
            "otsu",
            "-w",
            str(tmp_path / "work"),
            "--dry-run",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "sub-02_run-1_T2w.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sub-01_T2w" in done.stdout


def test_reports_are_made_anew_to_the_bit_and_the_group_page_from_them(data, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "sub-01.html").unlink()
    # Neither working folder nor settings: those of the run are in the output.
    words = [str(data.root), str(out)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gsbids",
            *words,
            "participant",
            "-d",
            f"masks={data.masks_root}",
            "-w",
            str(tmp_path / "work"),
            "--reports-only",
            "--nprocs",
            "1",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert checksums(out) == checksums(finished[0])
    assert (out / "sub-01.html").read_bytes() == (finished[0] / "sub-01.html").read_bytes()
    assert not (tmp_path / "work").exists()
    done = subprocess.run(
        [sys.executable, "-m", "gsbids", *words, "group"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = (out / "group_desc-qc_metrics.tsv").read_text(encoding="utf-8").splitlines()[1:]
    own = next(out.glob("sub-01/anat/*_desc-qc_metrics.tsv")).read_text(encoding="utf-8").splitlines()[1]
    assert row.split("\t") == [own.split("\t")[0], "sub-01", *own.split("\t")[1:], "n/a"]
