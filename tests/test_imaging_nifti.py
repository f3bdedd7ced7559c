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


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([0.0, 0, 0, 1]),
        np.diag([1.0, 1, 0, 1]),
        np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
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


def test_two_affines_that_contradict_each_other_are_said_and_the_sform_is_taken(tmp_path, caplog):
    sform, qform = np.diag([2.0, 2, 4, 1]), np.diag([2.0, 2, 4, 1])
    sform[:3, 3] = 5, 5, 5
    for name, shift in (("same", 0.2), ("apart", 30)):
        qform[:3, 3] = 5, 5, 5 + shift
        image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), sform)
        image.set_sform(sform, 1)
        image.set_qform(qform, 1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(load_image(tmp_path / f"{name}.nii.gz")[1], sform)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path / 'apart.nii.gz'}: sform and qform put it 30 mm apart; the sform is taken: ")


@pytest.mark.parametrize(
    ("unit", "factor", "words"),
    [
        ("meter", 1e-3, "its lengths are in m; they are converted to mm"),
        ("micron", 1e3, "its lengths are in micrometres; they are converted to mm"),
        ("micron", 1.0, "they are taken as mm: correct xyzt_units"),
        ("mm", 1.0, ""),
        ("unknown", 1.0, ""),
    ],
)
def test_headers_in_other_units_are_read_in_mm(tmp_path, data, caplog, unit, factor, words):
    image = nib.Nifti1Image(data, None)
    image.set_sform(np.diag([factor, factor, factor, 1]) @ AFFINE, code=1)
    image.header.set_zooms(factor * np.linalg.norm(AFFINE[:3, :3], axis=0))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(load_image(tmp_path / "a.nii.gz")[1], AFFINE, rtol=1e-6)
    assert [line.startswith(f"{tmp_path / 'a.nii.gz'}: ") and words in line for line in caplog.messages] == [
        True
    ] * bool(words)


def test_voxel_sizes_that_contradict_each_other_are_said_and_the_sform_is_taken(tmp_path, data, caplog):
    image = nib.Nifti1Image(data, None)
    image.set_sform(np.diag([1.0, 1, 1, 1]), code=1)
    image.header.set_zooms((1.1, 1.2, 3.0))
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(load_image(tmp_path / "a.nii")[1], np.eye(4))
    assert caplog.messages == [
        f"{tmp_path / 'a.nii'}: voxels are 1 x 1 x 1 mm by the sform and 1.1 x 1.2 x 3 mm by "
        "pixdim; the sform is taken: correct the header if the stacks have the wrong size"
    ]


def test_unsigned_numbers_that_were_stored_as_signed_ones_are_taken_as_unsigned(tmp_path, caplog):
    bright = np.linspace(0, 40000, 6 * 7 * 50).reshape(6, 7, 50).round()
    for name, dtype in (("wrapped", "<i2"), ("swapped", ">i2")):
        nib.save(nib.Nifti1Image(bright.astype(np.uint16).astype(dtype), AFFINE), tmp_path / f"{name}.nii.gz")
        np.testing.assert_array_equal(load_image(tmp_path / f"{name}.nii.gz")[0], bright)
        assert (
            f"{name}.nii.gz: {(bright > 32767).sum()} voxels are negative, as those brighter than 32767"
            in (caplog.messages[-1])
        )
    caplog.clear()
    signed = np.linspace(-32700, 32700, 6 * 7 * 50).reshape(6, 7, 50).astype(np.int16)
    nib.save(nib.Nifti1Image(signed, AFFINE), tmp_path / "signed.nii.gz")
    np.testing.assert_array_equal(load_image(tmp_path / "signed.nii.gz")[0], signed)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("dtype", "value", "least", "background"),
    [
        (np.int16, -32768, 0, 0),
        (np.float32, -32768, 0, 0),
        (np.int32, -(2**31), 0, 0),
        (np.int32, 2**31 - 1, 0, 0),
        (np.int16, -32768, -1000, -1000),
        (np.float32, np.finfo(np.float32).max, 0, 0),
        (np.float32, np.finfo(np.float32).min, -1000, -1000),
    ],
)
def test_values_that_stand_for_none_are_background(tmp_path, caplog, dtype, value, least, background):
    voxels = np.linspace(least, 1500, 6 * 7 * 5).reshape(6, 7, 5).astype(dtype)
    voxels[0] = value
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii.gz")
    found = load_image(tmp_path / "a.nii.gz")[0]
    rest = voxels[1:].astype(np.float32)
    np.testing.assert_array_equal(found[1:], rest)
    assert (found[0] == (background and rest.min())).all()
    assert caplog.messages == [
        f"{tmp_path / 'a.nii.gz'}: 35 voxels have the value {np.float32(value):g}, which stands "
        f"for no value, and are set to {found[0, 0, 0]:g}"
    ]


def test_a_quaternion_that_is_longer_than_1_by_rounding(tmp_path, data):
    header = nib.Nifti1Image(data, None).header
    header["qform_code"], header["magic"], header["vox_offset"] = 1, b"n+1\0", 352
    header["pixdim"][:4] = 1, 1, 1, 3
    header["quatern_b"], header["quatern_c"] = 0.6, 0.8000005
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + b"\0" * 4 + data.tobytes(order="F"))
    found = load_image(path)[1][:3, :3] / [1, 1, 3]
    np.testing.assert_allclose(found, [[-0.28, 0.96, 0], [0.96, 0.28, 0], [0, 0, -1]], atol=1e-5)
