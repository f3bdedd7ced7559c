# SPDX-License-Identifier: Apache-2.0
"""The real head as one volume that mask networks are trained on: reconstructed by gsbids, put among its stacks."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ball_stack, write_nifti

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

import head
from sources import REAL, is_brain, read_stack, surrounded

from gsbids.errors import InputError

QUICK = ("--sloppy", "--no-denoise", "--no-n4", "--nprocs", "1", "--slice-thickness", "3.5")
BALL = 4 / 3 * np.pi * 20 * 23 * 18  # mm3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three stacks of a ball, their masks, and the head that gsbids makes of them."""
    folder = tmp_path_factory.mktemp("head")
    stacks, masks = [], []
    for run in (1, 2, 3):
        image, mask, affine = ball_stack(run)
        stacks.append(write_nifti(folder / f"stack{run}.nii.gz", image, affine))
        masks.append(write_nifti(folder / f"mask{run}.nii.gz", mask, affine))
    return stacks, masks, folder / "runs-1-2-3", head.head_volume(stacks, masks, folder / "runs-1-2-3", QUICK)


def test_the_volume_shows_the_brain_and_what_is_around_it(files):
    _, _, _, (volume, mask) = files
    image, inside = (np.asarray(nib.load(path).dataobj) for path in (volume, mask))
    affine = nib.load(volume).affine
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), head.VOXEL, rtol=1e-6)
    assert inside.sum() * head.VOXEL**3 == pytest.approx(BALL, rel=0.25)
    middle = affine[:3, :3] @ np.argwhere(inside).mean(0) + affine[:3, 3]
    np.testing.assert_allclose(middle, 0, atol=2)
    extent = np.array(image.shape) * head.VOXEL
    assert (extent > 2 * np.array((20, 23, 18)) + 12).all(), "more than the brain"
    assert image[inside > 0].mean() > 300


def test_it_is_made_once(files, monkeypatch):
    stacks, masks, folder, (volume, mask) = files
    monkeypatch.setattr(head.subprocess, "run", lambda *told, **more: pytest.fail("made again"))
    before = volume.stat().st_mtime_ns
    assert head.head_volume(stacks, masks, folder) == (volume, mask)
    assert volume.stat().st_mtime_ns == before


def test_stacks_that_gsbids_refuses_are_an_error_and_leave_no_head(tmp_path, files):
    stacks, masks, _, _ = files
    with pytest.raises(InputError, match="did not reconstruct the head"):
        head.head_volume(stacks, masks, tmp_path / "none", ("--output-resolution", "-1"))
    assert not (tmp_path / "none" / "head_mask.nii.gz").exists()


def test_where_the_head_knows_nothing_lies_what_stacks_show(files):
    stacks, masks, _, kept = files
    scene, affine = head.head_scene(*kept)
    assert scene.real
    assert not scene.thick
    assert scene.labels.max() == REAL
    stack, own = read_stack(stacks[0], masks[0])
    assert stack.thick
    around = surrounded(scene, affine, stack, own)
    middle = np.argwhere(is_brain(scene.labels)).mean(0).astype(int)
    hole = tuple(slice(m - 3, m + 4) for m in middle)
    around.inner.image[hole] = 0
    filled = head.filled_up(around)
    np.testing.assert_array_equal(filled.inner.labels, scene.labels)
    inside, far = is_brain(filled.inner.labels), is_brain(filled.labels)
    there = np.rint((filled.inner.start + middle * head.VOXEL) / filled.spacing).astype(int)
    assert float(filled.inner.image[tuple(middle)]) == pytest.approx(float(filled.image[tuple(there)]), abs=25)
    assert filled.inner.image[hole].min() > 0
    assert filled.inner.image[inside].mean() == pytest.approx(filled.image[far].mean(), rel=0.05)


def test_a_training_takes_the_head_where_its_configuration_says_so(files, monkeypatch):
    stacks, masks, folder, _ = files
    monkeypatch.setattr(head, "stack_files", lambda place, runs, labels: (stacks, masks))
    names = [
        [scene.name for scene in head.real_scenes(folder, {"runs": [1, 2, 3]} | more, folder.parent)]
        for more in ({}, {"heads": [1, 3]})
    ]
    assert names[0] == ["stack1.nii.gz", "stack2.nii.gz", "stack3.nii.gz"]
    assert names[1] == [*names[0], "head", "head"]
