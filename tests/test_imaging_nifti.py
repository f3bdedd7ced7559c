# SPDX-License-Identifier: Apache-2.0
"""Files in and out: what is read, what is refused and in which words."""

import logging

import nibabel as nib
import numpy as np
import pytest

from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image, read_header, save_image

AFFINE = np.array([[0.0, 0, 3, -10], [-1.1, 0, 0, 20], [0, 1.2, 0, 30], [0, 0, 0, 1]])


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(100, 30, (6, 7, 5)).astype(np.float32)


def write(path, data, affine=AFFINE, **forms):
    image = nib.Nifti1Image(data, None)
    image.set_sform(affine, code=forms.get("sform", 1))
    image.set_qform(AFFINE if forms.get("qform") else affine, code=forms.get("qform", 0))
    nib.save(image, path)
    return path


def test_round_trip_keeps_voxels_affine_and_bytes(tmp_path, data):
    path = save_image(tmp_path / "a.nii.gz", data, AFFINE)
    read, affine = load_image(path)
    np.testing.assert_array_equal(read, data)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    header = nib.load(path).header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"
    assert save_image(tmp_path / "b.nii.gz", data, AFFINE).read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_integer_types_are_rounded(tmp_path):
    path = save_image(tmp_path / "m.nii", np.full((2, 2, 2), 254.7), np.eye(4), dtype="uint8")
    assert nib.load(path).get_data_dtype() == np.uint8
    assert load_image(path)[0].max() == 255


def test_sheared_affine_has_no_qform(tmp_path, data):
    sheared = AFFINE.copy()
    sheared[0, 0] = 0.4
    path = save_image(tmp_path / "s.nii.gz", data, sheared)
    assert nib.load(path).header["qform_code"] == 0
    np.testing.assert_allclose(read_header(path)[1], sheared, atol=1e-5)


def test_qform_only_and_trailing_axes(tmp_path, data):
    path = write(tmp_path / "q.nii.gz", data[..., None, None], np.eye(4), sform=0, qform=1)
    assert read_header(path)[0] == data.shape
    read, affine = load_image(path)
    np.testing.assert_array_equal(read, data)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def test_scaled_integers(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, 1.0)
    nib.save(image, tmp_path / "i.nii.gz")
    read, _ = load_image(tmp_path / "i.nii.gz")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read.ravel(), nib.load(tmp_path / "i.nii.gz").get_fdata().ravel())


def test_not_finite_voxels_are_counted(tmp_path, data, caplog):
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    path = write(tmp_path / "n.nii.gz", data)
    with caplog.at_level(logging.WARNING, logger="gsbids"):
        read, _ = load_image(path)
    assert f"{path}: 3 voxels were NaN or infinite and are set to 0" in caplog.text
    assert np.isfinite(read).all()
    assert (read[0, 0, :3] == 0).all()


def refused(path, words):
    with pytest.raises(InputError, match=words) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    refused(tmp_path / "none.nii.gz", "no such file")
    (tmp_path / "text.nii.gz").write_text("no image")
    refused(tmp_path / "text.nii.gz", "not a readable NIfTI")
    (tmp_path / "empty.nii").write_bytes(b"")
    refused(tmp_path / "empty.nii", "not a readable NIfTI")
    nib.save(nib.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / "a.mgz")
    refused(tmp_path / "a.mgz", "not NIfTI")


@pytest.mark.parametrize("name", ["t.nii.gz", "t.nii"])
def test_truncated_file(tmp_path, data, name):
    path = write(tmp_path / name, np.tile(data, (4, 4, 4)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "truncated or corrupt")


def test_several_volumes_and_colours(tmp_path, data):
    refused(write(tmp_path / "v.nii.gz", np.stack([data, data], -1)), "2 volumes")
    colour = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(write(tmp_path / "c.nii.gz", colour), "colour")


@pytest.mark.parametrize("affine", [np.diag([0.0, 0, 0, 1]), np.diag([1.0, 1, 0, 1]),
                                    np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])])
def test_singular_affine(tmp_path, data, affine):
    image = nib.Nifti1Image(data, None)
    image.header["sform_code"] = 1
    for k, row in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[row] = affine[k]
    path = tmp_path / "z.nii.gz"
    with open(tmp_path / "z.nii", "wb") as file:
        image.header["magic"] = b"n+1\0"
        image.header["vox_offset"] = 352
        image.header.write_to(file)
        file.write(b"\0" * 4 + data.tobytes(order="F"))
    path = tmp_path / "z.nii"
    refused(path, "zero or singular")
