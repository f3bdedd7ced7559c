# SPDX-License-Identifier: Apache-2.0
"""Data that cannot be used is refused in one line; what is odd is said."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from conftest import ball_stack, write_nifti

from gsbids.bids.check import CheckOptions, check_task, fill_thickness
from gsbids.bids.query import Selection, find_tasks
from gsbids.errors import InputError


def check(tiny, masks=True, **options) -> list[str]:
    datasets = {"masks": tiny.masks} if masks else {}
    (task,) = find_tasks(tiny.root, Selection(mask_datasets=datasets))
    task = fill_thickness(task)
    return [*task.warnings, *check_task(task, CheckOptions(masks_given=masks, **options))]


def refusal(tiny, **options) -> str:
    with pytest.raises(InputError) as caught:
        check(tiny, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gap_between_slices_is_said_once(tiny_bids):
    assert check(tiny_bids()) == [
        "run-1, run-2, run-3: slices are 3.5 mm thick (sidecar) and 4 mm apart (header), a gap of 0.5 mm; "
        "the thickness is taken for the slice profile"]
    assert check(tiny_bids(thickness=4.0, name="equal")) == []
    (line,) = check(tiny_bids(thickness=4.4, name="overlap"), thickness_given=True)
    assert "(--slice-thickness)" in line
    assert "an overlap of 0.4 mm" in line


def test_one_stack_only(tiny_bids):
    tiny = tiny_bids(stacks=1)
    line = refusal(tiny)
    assert line.startswith(f"{tiny.stack()}: sub-01_T2w has this one stack only")
    assert "super-resolution (SR) of a single volume give --mode sr" in line


def test_thickness_absent_everywhere(tiny_bids):
    line = refusal(tiny_bids(thickness=None))
    assert "no SliceThickness and no other stack has one" in line
    assert "--slice-thickness MM" in line


def test_thickness_absent_in_one_stack(tiny_bids):
    tiny = tiny_bids()
    tiny.sidecar(run=2).unlink()
    assert check(tiny)[0].startswith("run-2: no SliceThickness in the sidecar; 3.5 mm is taken")
    tiny.sidecar(run=1).write_text(json.dumps({"SliceThickness": 2}))
    assert "the other stacks have 2 and 3.5 mm" in refusal(tiny)


def test_thickness_in_metres(tiny_bids):
    tiny = tiny_bids(thickness=0.0035)
    assert f"{tiny.stack()}: a slice thickness of 0.0035 mm is outside" in refusal(tiny)


def test_truncated_file(tiny_bids):
    tiny = tiny_bids()
    content = tiny.stack(run=2).read_bytes()
    tiny.stack(run=2).write_bytes(content[:len(content) // 2])
    assert refusal(tiny).startswith(f"{tiny.stack(run=2)}: ")
    tiny.stack(run=2).write_bytes(b"not an image")
    assert refusal(tiny).startswith(f"{tiny.stack(run=2)}: ")
    tiny.stack(run=2).write_bytes(gzip.compress(gzip.decompress(content)[:1000]))
    assert refusal(tiny).startswith(f"{tiny.stack(run=2)}: ")


def test_several_volumes(tiny_bids):
    tiny = tiny_bids()
    image, _, affine = ball_stack(1)
    write_nifti(tiny.stack(), np.stack([image, image], axis=-1), affine)
    line = refusal(tiny)
    assert line.startswith(f"{tiny.stack()}: ")
    assert "2 volumes" in line
    write_nifti(tiny.stack(), image[..., None], affine)
    assert len(check(tiny)) == 1


def test_bad_voxels_are_counted(tiny_bids, caplog):
    tiny = tiny_bids(thickness=4.0)
    image, _, affine = ball_stack(1)
    image = image.astype("float32")
    image[3, 3, 3], image[4, 4, 4] = np.nan, np.inf
    write_nifti(tiny.stack(), image, affine)
    assert check(tiny) == [f"{tiny.stack()}: 2 voxels were NaN or infinite and are set to 0"]
    assert caplog.text == ""


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([2.0, 0, 4, 1])])
def test_unusable_affine(tiny_bids, affine):
    tiny = tiny_bids()
    image = nib.Nifti1Image(ball_stack(1)[0], None)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    for row in range(3):
        image.header[f"srow_{'xyz'[row]}"] = affine[row]
    nib.save(image, tiny.stack())
    raw = bytearray(gzip.decompress(tiny.stack().read_bytes()))
    raw[280:328] = np.float32(affine[:3]).tobytes()
    raw[254:256] = np.int16(1).tobytes()
    tiny.stack().write_bytes(gzip.compress(bytes(raw)))
    line = refusal(tiny)
    assert line.startswith(f"{tiny.stack()}: ")
    assert "affine" in line


def test_sheared_affine_names_the_file(tiny_bids):
    tiny = tiny_bids()
    image, _, affine = ball_stack(1)
    affine[0, 1] = 0.5
    write_nifti(tiny.stack(), image, affine)
    assert refusal(tiny).startswith(f"{tiny.stack()}: the in-plane axes")


def test_empty_image(tiny_bids):
    tiny = tiny_bids()
    image, _, affine = ball_stack(1)
    write_nifti(tiny.stack(), image * 0, affine)
    assert refusal(tiny).startswith(f"{tiny.stack()}: all voxels are 0")


def test_empty_mask(tiny_bids):
    tiny = tiny_bids()
    _, mask, affine = ball_stack(2)
    write_nifti(tiny.mask(run=2), mask * 0, affine)
    assert refusal(tiny).startswith(f"{tiny.mask(run=2)}: the mask is empty")


def test_mask_elsewhere(tiny_bids):
    tiny = tiny_bids()
    _, mask, affine = ball_stack(2)
    affine[:3, 3] += 500
    write_nifti(tiny.mask(run=2), mask, affine)
    line = refusal(tiny)
    assert line.startswith(f"{tiny.mask(run=2)}: the mask does not overlap its stack {tiny.stack(run=2)}")


def test_mask_on_another_grid_is_said(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    _, mask, affine = ball_stack(1)
    write_nifti(tiny.mask(run=2), mask, affine)
    assert check(tiny) == ["run-2: the mask lies on another grid and is resampled by its affine"]


def test_missing_masks(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    tiny.mask(run=3).unlink()
    assert check(tiny) == ["run-3: no mask in the data sets of --derivatives; a mask is made from the image"]
    assert refusal(tiny, mask_mode="derivatives").startswith(f"{tiny.stack(run=3)}: no mask for this stack")
    assert check(tiny, masks=False) == []


def test_real_data_warns_of_the_gap(test_data):
    root = test_data / "fetal-stacks-mialsrtk"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    (task,) = find_tasks(root, Selection(mask_datasets={"masks": root / "derivatives" / "manual_masks"}))
    (line,) = check_task(fill_thickness(task))
    assert "slices are 3 mm thick (sidecar) and 3.3 mm apart (header), a gap of 0.3 mm" in line
