# SPDX-License-Identifier: Apache-2.0
"""``gsbids.reconstruct`` and its like: images in memory go in and come out, by the commands of the same names."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ball_stack, write_nifti

import gsbids
from gsbids import api
from gsbids.errors import GsbidsError, InputError

QUICK = {"sloppy": True, "nprocs": 2, "progress": False}


@pytest.fixture(scope="module")
def images():
    """Three stacks and their masks in memory."""
    made = [ball_stack(run) for run in (1, 2, 3)]
    return [nib.Nifti1Image(image, affine) for image, _, affine in made], [
        nib.Nifti1Image(mask, affine) for _, mask, affine in made
    ]


@pytest.fixture(scope="module")
def found(images):
    """Their reconstruction."""
    stacks, masks = images
    return gsbids.reconstruct(stacks, masks, thickness=3.5, resolution=2.0, **QUICK)


def test_a_reconstruction_holds_volume_mask_motion_and_verdict(found, images):
    volume, mask = found.volume, found.mask
    assert volume.shape == mask.shape
    np.testing.assert_allclose(volume.header.get_zooms(), 2.0)
    inside = mask.get_fdata() > 0
    truth = images[1][0].get_fdata().sum() * np.prod(images[1][0].header.get_zooms())
    assert inside.sum() * 8 == pytest.approx(truth, rel=0.2)
    assert 400 < np.median(volume.get_fdata()[inside]) < 800
    assert found.uncertainty.shape == volume.shape
    assert set(found.motion["stack"]) == {1, 2, 3}
    assert {"slice", "rot_x", "trans_z", "weight"} <= set(found.motion)
    assert found.metrics["n_stacks"] == 3
    assert found.verdict in ("usable", "look at it", "do not use")
    assert isinstance(found.reasons, list)


def test_models_and_reports_are_kept_and_sampled(found, tmp_path):
    assert found.report(tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert found.save(tmp_path / "a.npz").stat().st_size > 1000
    fine = found.sample(spacing=1.5, progress=False)
    np.testing.assert_allclose(fine.header.get_zooms(), 1.5)
    same = found.sample(like=found.volume, progress=False)
    np.testing.assert_array_equal(same.affine, found.volume.affine)
    with pytest.raises(InputError, match="give a spacing"):
        found.sample()


def test_a_volume_is_made_finer(images, tmp_path, capfd):
    path = write_nifti(tmp_path / "a.nii.gz", *ball_stack(1)[::2])
    for image in (images[0][0], path):
        fine = gsbids.super_resolve(image, factor=(1, 1, 2), sr_quality="fast", nprocs=1)
        assert fine.shape == (28, 28, 28)
    assert capfd.readouterr().err  # what the command says
    with pytest.raises(InputError, match="one of them"):
        gsbids.super_resolve(path, factor=2, resolution=1.0)


def test_no_brain_is_an_error(images):
    with pytest.raises(GsbidsError, match="no brain was found"):
        gsbids.brain_mask(nib.Nifti1Image(np.zeros((32, 32, 8), np.float32), np.diag([2, 2, 4, 1.0])), progress=False)


def test_what_cannot_be_used_is_said_in_one_line(images, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.nii\.gz"):
        gsbids.reconstruct([tmp_path / "nothing.nii.gz", images[0][0]], thickness=3.0, progress=False)
    with pytest.raises(InputError, match="thickness"):
        gsbids.reconstruct(images[0], images[1], **QUICK)
    with pytest.raises(InputError, match=r"write \[stack\]"):
        gsbids.reconstruct(images[0][0], thickness=3.0)
    with pytest.raises(InputError, match="stack 2 is a ndarray"):
        gsbids.reconstruct([images[0][0], np.zeros((3, 3, 3))], thickness=3.0)
    with pytest.raises(AttributeError, match="nothing"):
        _ = gsbids.nothing


def test_options_are_those_of_the_command_line():
    assert api._as_words({"random_seed": 1, "n4": False, "sloppy": True, "mask_weights": None, "factor": (1, 2)}) == [
        "--random-seed",
        "1",
        "--no-n4",
        "--sloppy",
        "--factor",
        "1",
        "2",
    ]


def test_the_package_offers_them_and_stays_light():
    code = (
        "import sys, gsbids; assert {'reconstruct', 'super_resolve', 'brain_mask'} <= set(dir(gsbids)); "
        "assert not {'numpy', 'torch', 'nibabel'} & set(sys.modules); gsbids.reconstruct; "
        "assert not {'numpy', 'torch', 'nibabel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
