# SPDX-License-Identifier: Apache-2.0
"""The simulator: its geometry, its point spread function, its files, and the comparison with the truth."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.nifti import load_image, save_image
from gsbids.simulate.__main__ import main
from gsbids.simulate.acquire import (
    IN_PLANE_FWHM,
    Acquisition,
    Scanner,
    acquisition_order,
    draw_motion,
    rigid_about,
    stack_grid,
)
from gsbids.simulate.compare import average_of_stacks, compare_to_truth, score
from gsbids.simulate.dataset import SimulationSettings, simulate_dataset, simulate_stacks
from gsbids.simulate.phantom import FWHM_TO_SIGMA, Phantom, band_limited, fetal_phantom

TINY = SimulationSettings(
    phantom_voxel=2.0,
    brain_ml=80.0,
    truth_resolution=2.0,
    orientations=("axial", "coronal", "sagittal"),
    acquisition=Acquisition(in_plane=2.0, thickness=4.0, spacing=4.0),
)


@pytest.fixture(scope="module")
def phantom():
    return fetal_phantom(voxel=2.0, brain_ml=80.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return simulate_dataset(tmp_path_factory.mktemp("simulated") / "bids", TINY)


def gaussian_ball(sigma=(4.0, 4.0, 4.0), voxel=1.0, size=61):
    """A phantom whose image is one axis-aligned Gaussian of peak 1000 at world 0."""
    axis = voxel * (np.arange(size) - (size - 1) / 2)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    image = 1000 * np.exp(-0.5 * ((x / sigma[0]) ** 2 + (y / sigma[1]) ** 2 + (z / sigma[2]) ** 2))
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = axis[0]
    return Phantom(image.astype(np.float32), image > 300, affine)


def test_phantom_has_the_size_and_the_contrast_of_a_fetal_head():
    phantom = fetal_phantom(voxel=1.0, brain_ml=80.0)
    radius = (3 * 80 / (4 * np.pi)) ** (1 / 3) * 10  # of a ball as large as the brain, mm
    assert 80 * (1 + 2 / radius) ** 3 < phantom.mask_ml < 80 * (1 + 6 / radius) ** 3
    brain = phantom.image[phantom.mask]
    depth = ndimage.distance_transform_edt(~phantom.mask) * phantom.voxel
    rim = phantom.image[(depth > 0) & (depth < 1.5)]
    skull = phantom.image[(depth > 1.5) & (depth < 3.5)]
    assert np.median(skull) < 0.7 * np.median(brain) < 0.7 * np.median(rim)
    assert np.percentile(brain, 95) - np.percentile(brain, 5) > 400
    middle = phantom.affine[:3, :3] @ ((np.array(phantom.image.shape) - 1) / 2) + phantom.affine[:3, 3]
    np.testing.assert_allclose(middle, 0, atol=1e-9)


def test_band_limited_truth_stays_in_place_and_loses_detail():
    ball = gaussian_ball()
    coarse = band_limited(ball, 2.0)
    peak = np.unravel_index(coarse.image.argmax(), coarse.image.shape)
    np.testing.assert_allclose(coarse.affine[:3, :3] @ peak + coarse.affine[:3, 3], 0, atol=1e-6)
    expected = 1000 * (16 / (16 + (2.0**2 - 1) * FWHM_TO_SIGMA**2)) ** 1.5
    assert coarse.image.max() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("count", "interleave", "expected"),
    [(5, 1, [0, 1, 2, 3, 4]), (5, 2, [0, 3, 1, 4, 2]), (7, 3, [0, 3, 5, 1, 4, 6, 2])],
)
def test_acquisition_order(count, interleave, expected):
    assert acquisition_order(count, interleave).tolist() == expected


def test_motion_is_smooth_in_time_and_bounded():
    motion = draw_motion(120, angle=5, shift=3, smooth=4, rng=np.random.default_rng(0))
    assert np.abs(motion[:, :3]).max() <= np.radians(5)
    assert np.abs(motion[:, 3:]).max() <= 3
    assert np.abs(np.diff(motion, axis=0)).mean() < 0.25 * np.abs(motion).mean()


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
def test_slices_equal_the_closed_form(orientation):
    """A Gaussian seen by a Gaussian PSF that turns with the slice is a Gaussian: no quadrature to trust."""
    sigma = np.array([5.0, 3.0, 4.0])
    acquisition = Acquisition(in_plane=1.5, thickness=4.0, spacing=4.0)
    tilt = Rotation.from_rotvec([7, -5, 3], degrees=True)
    affine, shape = stack_grid(orientation, acquisition, (16, 16, 16), tilt)
    rng = np.random.default_rng(3)
    turns, shifts = rng.uniform(-0.3, 0.3, (shape[2], 3)), rng.uniform(-3, 3, (shape[2], 3))
    transforms = rigid_about(np.zeros(3), turns, shifts)
    image, mask = Scanner(gaussian_ball(sigma), acquisition).ideal_slices(affine, shape, transforms)
    frames, _ = slice_frames(affine, shape)
    widths = np.array([IN_PLANE_FWHM * 1.5, IN_PLANE_FWHM * 1.5, 4.0]) * FWHM_TO_SIGMA
    for k in range(shape[2]):
        axes = transforms[k, :3, :3] @ frames[k]
        covariance = np.diag(sigma**2) + axes @ np.diag(widths**2) @ axes.T
        index = np.indices((*shape[:2], 1)).reshape(3, -1) + np.array([[0], [0], [k]])
        x = transforms[k, :3, :3] @ (affine[:3, :3] @ index + affine[:3, 3:]) + transforms[k, :3, 3:]
        value = (
            np.sqrt(np.prod(sigma**2) / np.linalg.det(covariance))
            * 1000
            * np.exp(-0.5 * np.einsum("in,ij,jn->n", x, np.linalg.inv(covariance), x))
        )
        np.testing.assert_allclose(image[:, :, k].ravel(), value, atol=1.0)  # of a peak near 600
    assert mask.any()


def test_stack_carries_what_was_done_to_it(phantom):
    settings = replace(TINY, acquisition=replace(TINY.acquisition, drop=0.5, noise=0.0, bias=0.0))
    stacks = simulate_stacks(settings, phantom)
    clean = simulate_stacks(replace(settings, acquisition=replace(settings.acquisition, drop=0.0)), phantom)
    dropped = stacks[0].dropped
    assert 0 < dropped.sum() < dropped.size
    totals = stacks[0].image.sum(axis=(0, 1))
    for k in np.flatnonzero(~dropped):
        assert totals[k] == pytest.approx(clean[0].image[:, :, k].sum(), rel=1e-4)
    assert (totals[dropped] < 0.95 * clean[0].image.sum(axis=(0, 1))[dropped]).all()


def test_same_seed_same_bytes_other_seed_other_motion(tmp_path, dataset):
    again = simulate_dataset(tmp_path / "again", TINY)
    other = simulate_dataset(tmp_path / "other", replace(TINY, seed=2))
    assert again.stacks[0].read_bytes() == dataset.stacks[0].read_bytes()
    assert again.motion[0].read_bytes() == dataset.motion[0].read_bytes()
    assert other.motion[0].read_bytes() != dataset.motion[0].read_bytes()


def test_true_motion_predicts_the_masks(dataset, phantom):
    """The table's convention, checked on the images: a slice's mask lies where the moved brain is."""
    with_motion, without = [], []
    for stack, mask_file, table in zip(dataset.stacks, dataset.masks, dataset.motion, strict=True):
        mask, affine = load_image(mask_file)
        shape = load_image(stack)[0].shape
        assert mask.shape == shape
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert len(rows) == shape[2]
        for row in rows[::4]:
            k = int(row["slice"])
            t, r, c = (
                np.array([float(row[f"{name}_{axis}"]) for axis in "xyz"]) for name in ("trans", "rot", "centre")
            )
            inside = np.argwhere(mask[:, :, k] > 0)
            if len(inside) < 20:
                continue
            x = np.c_[inside, np.full(len(inside), k)] @ affine[:3, :3].T + affine[:3, 3]
            moved = Rotation.from_euler("xyz", r).apply(x - c) + c + t
            for points, covered in ((moved, with_motion), (x, without)):
                index = (points - phantom.affine[:3, 3]) / phantom.voxel
                covered.append(ndimage.map_coordinates(phantom.mask.astype(float), index.T, order=1).mean())
    assert np.mean(with_motion) > 0.9
    assert np.mean(without) < np.mean(with_motion) - 0.03


@pytest.mark.parametrize("part", ["", "derivatives/masks", "derivatives/truth"])
def test_data_sets_are_valid_bids(dataset, part):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    command = [validator, dataset.root / part, "--format", "json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(run.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_masks_name_the_stack_they_come_from(dataset):
    for stack, mask in zip(dataset.stacks, dataset.masks, strict=True):
        sidecar = json.loads(Path(str(mask).replace(".nii.gz", ".json")).read_text())
        assert sidecar["Sources"] == [f"bids:raw:{stack.relative_to(dataset.root)}"]


def test_second_subject_joins_and_the_first_is_never_overwritten(dataset):
    with pytest.raises(InputError, match=r"sub-01: this subject is there already"):
        simulate_dataset(dataset.root, TINY)
    simulate_dataset(dataset.root, replace(TINY, subject="02", orientations=("axial",)))
    assert (dataset.root / "participants.tsv").read_text().split() == ["participant_id", "sub-01", "sub-02"]


def test_score_forgives_gain_and_offset_and_nothing_else(phantom):
    psnr, ncc = score(3 * phantom.image + 40, phantom.image, phantom.mask)
    assert psnr > 90
    assert ncc == pytest.approx(1, abs=1e-6)
    noisy = phantom.image + 100 * np.random.default_rng(0).standard_normal(phantom.image.shape)
    values = phantom.image[phantom.mask].astype(float)
    # The best gain shrinks towards the mean: error^2 = noise^2 * signal^2 / (noise^2 + signal^2).
    error = 100 * values.std() / np.hypot(100, values.std())
    expected = 20 * np.log10(values.max() / error)
    assert score(noisy, phantom.image, phantom.mask)[0] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("angle", [0, 20])
def test_comparison_undoes_a_rigid_motion(tmp_path, dataset, angle):
    truth, affine = load_image(dataset.truth)
    mask = load_image(dataset.truth_mask)[0] > 0.5
    move = rigid_about(np.zeros(3), np.radians([angle, -angle / 2, 4.0]), np.array([6.0, -9.0, 4.0]))
    file = save_image(tmp_path / "moved.nii.gz", (2 * truth + 50) * mask, move @ affine)
    found = compare_to_truth(file, dataset.truth, dataset.truth_mask)
    assert found.psnr > 50
    assert found.coverage > 0.95


def test_average_of_still_stacks_beats_average_of_moving_ones(tmp_path):
    moving = replace(TINY, acquisition=replace(TINY.acquisition, noise=0, drop=0, bias=0))
    still = replace(moving, angle=0, shift=0, stack_angle=0, stack_shift=0)
    scores = []
    for name, settings in (("still", still), ("moving", moving)):
        files = simulate_dataset(tmp_path / name, settings)
        image, affine = average_of_stacks(files.stacks, files.masks, 2.0)
        average = save_image(tmp_path / f"{name}.nii.gz", image, affine)
        scores.append(compare_to_truth(average, files.truth, files.truth_mask))
    assert scores[0].ncc > 0.6
    assert scores[0].ncc > scores[1].ncc + 0.1


def test_empty_volume_is_refused_in_words(tmp_path, dataset):
    file = save_image(tmp_path / "empty.nii.gz", np.zeros((5, 5, 5)), np.eye(4))
    with pytest.raises(InputError, match="every voxel is 0"):
        compare_to_truth(file, dataset.truth, dataset.truth_mask)


def test_command_simulates_and_scores(tmp_path, capsys):
    out = tmp_path / "bids"
    tiny = [
        "--voxel",
        "2",
        "--brain-ml",
        "80",
        "--truth-resolution",
        "2",
        "--in-plane",
        "2",
        "--thickness",
        "4",
        "--spacing",
        "4",
        "--stacks",
        "axial",
        "coronal",
    ]
    assert main([str(out), *tiny]) == 0
    assert "2 stacks of sub-01" in capsys.readouterr().out
    truth = out / "derivatives/truth/sub-01/anat/sub-01_desc-truth_T2w.nii.gz"
    assert main([str(out), "--score", str(truth), "--json", "--truth-resolution", "2"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["reconstruction"]["psnr"] > 60 > scores["average of stacks"]["psnr"]
    assert main([str(out), *tiny]) == 2
    assert capsys.readouterr().err.count("\n") == 1
