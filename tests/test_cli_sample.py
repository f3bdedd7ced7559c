# SPDX-License-Identifier: Apache-2.0
"""``gsbids sample`` of super-resolution models: on any grid, without another fit, and what it refuses."""

import json

import numpy as np
import pytest
from conftest import write_nifti
from test_sr import QUICK, decimated, phantom, psnr

from gsbids.cli.main import main
from gsbids.imaging.nifti import load_image
from gsbids.recon.models import grid_of_factor, grid_of_spacing
from gsbids.recon.sr.fit import super_resolve
from gsbids.recon.sr.grid import grid_by_factor, resampled
from gsbids.recon.sr.sample import sample_sr

AFFINE = np.array([[-2.0, 0, 0, 15], [0, 2, 0, -17], [0, 0, 2, 1], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def result():
    coarse = decimated(phantom(), (18, 20, 16))
    return super_resolve(coarse, AFFINE, grid_by_factor(coarse.shape, AFFINE, 2), QUICK)


@pytest.fixture(scope="module")
def model(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("model") / "sub-01_desc-gaussians_model.npz")


def moved(affine, shift):
    """The grid, moved by a share of its voxels."""
    inner = np.eye(4)
    inner[:3, 3] = shift
    return affine @ inner


def test_its_own_grid_gives_the_volume_to_the_bit(result):
    np.testing.assert_array_equal(sample_sr(result, result.affine, result.volume.shape), result.volume)
    # Next to it nothing jumps.
    near = sample_sr(result, moved(result.affine, 0.002), result.volume.shape)
    assert np.abs(near - result.volume).max() < 0.01 * result.volume.max()


def test_between_its_voxels_it_is_better_than_interpolation(result):
    """Truth on a grid that lies between: what the Gaussians know of it, splines do not."""
    fine = phantom((72, 80, 64))
    between = moved(result.affine, -0.25) @ np.diag([0.5, 0.5, 0.5, 1])
    ours = sample_sr(result, between, fine.shape)
    theirs = resampled(result.volume, result.affine, fine.shape, between)
    assert psnr(ours, fine) > psnr(theirs, fine)


def test_the_background_stays_empty_at_any_size(result):
    affine, shape = grid_of_factor(result.coarse_affine, result.filled.shape, 3.3)
    image = sample_sr(result, affine, shape)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    outside = (at**2).sum(0) > 1.3**2
    assert (image[outside] == 0).all()
    # So does what lies beyond the field of view.
    assert (sample_sr(result, moved(result.affine, 100), (5, 5, 5)) == result.intensity_offset).all()


def test_slices_and_points_say_the_same(result, monkeypatch):
    """Sheared grids are evaluated point by point."""
    from gsbids.recon.sr import sample as sr_sample

    affine = moved(result.affine, 0.3)
    straight = sample_sr(result, affine, (9, 10, 11))
    monkeypatch.setattr(sr_sample, "ORTHOGONAL", -1.0)
    np.testing.assert_allclose(sample_sr(result, affine, (9, 10, 11)), straight, atol=1e-3 * straight.max())


def test_grids_fill_the_field_of_view():
    affine, shape = grid_of_factor(AFFINE, (10, 11, 12), (1, 2, 2.5))
    assert shape == (10, 22, 30)
    np.testing.assert_allclose(affine @ [-0.5, -0.5, -0.5, 1], AFFINE @ [-0.5, -0.5, -0.5, 1], atol=1e-9)
    affine, shape = grid_of_spacing(AFFINE, (10, 11, 12), 1.5)
    assert shape == (13, 14, 16)
    np.testing.assert_allclose(affine @ [6, 6.5, 7.5, 1], AFFINE @ [4.5, 5, 5.5, 1], atol=1e-9)


def test_files(model, result, tmp_path):
    out, again, like = (tmp_path / f"{name}.nii.gz" for name in ("out", "again", "like"))
    assert main(["sample", str(model), str(out), "--spacing", "0.7"]) == 0
    image, affine = load_image(out)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 0.7, rtol=1e-6)
    write_nifti(like, np.zeros((7, 8, 9), np.uint8), moved(AFFINE, 5))
    mask = write_nifti(tmp_path / "mask.nii.gz", (result.volume > 300).astype("uint8"), result.affine)
    assert main(["sample", str(model), str(again), "--like", str(like), "--mask", str(mask), "--nprocs", "1"]) == 0
    image, affine = load_image(again)
    assert image.shape == (7, 8, 9)
    np.testing.assert_allclose(affine, moved(AFFINE, 5), atol=1e-5)
    assert (image == 0).any()
    assert image.max() > 300
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_grid_elsewhere_is_refused_with_both_places(model, tmp_path, capsys):
    grid, out = tmp_path / "grid.nii.gz", tmp_path / "out.nii.gz"
    write_nifti(grid, np.zeros((7, 8, 9), np.uint8), moved(AFFINE, 500))
    assert main(["sample", str(model), str(out), "--like", str(grid)]) == 2
    line = capsys.readouterr().err.strip()
    assert f"--like {grid} lies at x " in line
    assert f"and {model} at x " in line
    assert len(line.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "out.nii.gz"], "one of --spacing, --factor and --like is required"),
        (["MODEL", "out.nii.gz", "--spacing", "1", "--factor", "2"], "not allowed with"),
        (["MODEL", "out.nii.gz", "--spacing", "1", "2"], "one number or three"),
        (["MODEL", "out.mgz", "--spacing", "1"], "must end with"),
        (["MODEL", "no/out.nii.gz", "--spacing", "1"], "no such folder"),
        (["missing.npz", "out.nii.gz", "--spacing", "1"], "no such file"),
        (["text.npz", "out.nii.gz", "--spacing", "1"], "no model of gsbids"),
        (["arrays.npz", "out.nii.gz", "--spacing", "1"], "no model of gsbids"),
        (["half.npz", "out.nii.gz", "--spacing", "1"], "no model of gsbids"),
        (["older.npz", "out.nii.gz", "--spacing", "1"], "the format 'gsbids-sr-1'"),
        (["MODEL", "out.nii.gz", "--spacing", "0.001"], "ask for larger voxels"),
        (["MODEL", "out.nii.gz", "--like", "missing.nii.gz"], "no such file"),
        (["MODEL", "out.nii.gz", "--spacing", "1", "--mask", "far.nii.gz"], "no voxel of the grid is inside the mask"),
    ],
)
def test_one_line_for_what_cannot_be(model, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("words")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    np.savez(tmp_path / "older.npz", header=np.array(json.dumps({"format": "gsbids-sr-1"})))
    (tmp_path / "half.npz").write_bytes(model.read_bytes()[:-500])
    write_nifti(tmp_path / "far.nii.gz", np.ones((4, 4, 4), "uint8"), moved(AFFINE, 900))
    before = sorted(tmp_path.iterdir())
    try:
        code = main(["sample", *(str(model) if word == "MODEL" else word for word in words)])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) <= 2  # what is sampled may be named before
    assert sorted(tmp_path.iterdir()) == before
