# SPDX-License-Identifier: Apache-2.0
"""Data that cannot be used is refused in one line; what is odd is said."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from conftest import ball_stack, write_nifti
from scipy import ndimage

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


def test_gap_between_slices_is_said_once(tiny_bids, caplog):
    assert check(tiny_bids(thickness=3.0, name="wide")) == [
        "run-1, run-2, run-3: slices are 3 mm thick (sidecar) and 4 mm apart (header), a gap of 1 mm; "
        "the thickness is taken for the slice profile"
    ]
    caplog.set_level("INFO", logger="gsbids.bids")
    assert check(tiny_bids()) == []  # a usual gap is no warning, but it is logged
    assert caplog.messages == [
        "sub-01_T2w: run-1, run-2, run-3: slices are 3.5 mm thick (sidecar) and 4 mm apart "
        "(header), a gap of 0.5 mm; the thickness is taken for the slice profile"
    ]
    assert check(tiny_bids(thickness=4.0, name="equal")) == []
    (line,) = check(tiny_bids(thickness=4.4, name="overlap"), thickness_given=True)
    assert "(--slice-thickness)" in line
    assert "an overlap of 0.4 mm" in line


def test_negative_intensities_are_said(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    for run in (1, 3):
        image, _, affine = ball_stack(run)
        write_nifti(tiny.stack(run=run), image.astype(np.float32) / 100 - 9 * run, affine)
    (line,) = check(tiny)
    assert line.startswith("run-1, run-3: negative intensities (down to -26.")
    assert "the outputs are on the scale of the input" in line


@pytest.mark.parametrize(
    ("largest", "threshold"), [(0.06, 0.03), (0.45, 0.225), (0.8, 0.4), (97, 48.5), (100, 50), (254, 127), (255, 127.5)]
)
def test_soft_masks_are_taken_at_half_of_their_largest_value_and_it_is_said(tiny_bids, largest, threshold):
    from gsbids.masking.stack_masks import read_mask

    tiny = tiny_bids(thickness=4.0)
    _, mask, affine = ball_stack(2)
    blurred = ndimage.gaussian_filter(mask.astype(float), (2, 2, 1))
    soft = (largest * blurred / blurred.max()).astype(np.float32)
    soft = np.rint(soft).astype(np.uint8) if largest > 1 else soft
    write_nifti(tiny.mask(run=2), soft, affine)
    (line,) = check(tiny)
    assert line == f"run-2: the mask is soft (largest value {largest:g}); brain is where it is at least half of that"
    found, reason = read_mask(tiny.mask(run=2), affine, soft.shape)
    np.testing.assert_array_equal(found, soft >= threshold)
    assert "the mask is soft" in reason


def test_masks_without_shares_are_not_soft(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    for run, value in ((1, 1), (2, 255), (3, 41)):  # one label each
        _, mask, affine = ball_stack(run)
        write_nifti(tiny.mask(run=run), mask * np.uint8(value), affine)
    assert check(tiny) == []
    places = np.stack(np.indices(mask.shape)) // 4
    write_nifti(tiny.mask(run=3), mask * (1 + places[0] + 7 * places[1]).astype(np.uint8), affine)  # a parcellation
    assert check(tiny) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.03, "the mask has no value above 0.03, which is too little for a share of brain (more than 0.05)"),
        (-1, "the mask is empty (no voxel is above 0, the largest is 0)"),
        (0, "the mask is empty (all voxels are 0)"),
    ],
)
def test_the_true_reason_of_a_mask_that_is_none(tiny_bids, value, reason):
    tiny = tiny_bids()
    _, mask, affine = ball_stack(2)
    write_nifti(tiny.mask(run=2), mask.astype(np.float32) * np.float32(value), affine)
    assert refusal(tiny).startswith(f"{tiny.mask(run=2)}: {reason}; give a mask with the brain in it")


def test_inverted_masks_and_masks_of_everything_are_said(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    for run, change in ((1, lambda mask: 1 - mask), (3, np.ones_like)):
        _, mask, affine = ball_stack(run)
        write_nifti(tiny.mask(run=run), change(mask), affine)
    inverted, everything = sorted(check(tiny))
    assert inverted.startswith("run-1: the mask holds 100% of the borders of the image, so that it looks inverted")
    assert everything.startswith("run-3: the mask holds the whole image and shows no brain; it is taken as it is")


def test_a_sidecar_that_contradicts_the_voxels_is_said(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    image, mask, affine = ball_stack(2)
    order = [2, 0, 1, 3]  # transposed by a tool that left the sidecar alone
    write_nifti(tiny.stack(run=2), image.transpose(2, 0, 1), affine[:, order])
    write_nifti(tiny.mask(run=2), mask.transpose(2, 0, 1), affine[:, order])
    fields = json.loads(tiny.sidecar(run=2).read_text())
    tiny.sidecar(run=2).write_text(json.dumps(fields | {"SliceEncodingDirection": "k"}))
    (line, _) = sorted(check(tiny), key=lambda text: "apart" in text)
    assert line.startswith(
        "run-2: SliceEncodingDirection is k, but voxels are longest along i (4 mm, along k 2 mm); "
        "slices along k are taken, as the sidecar says: correct it"
    )
    tiny.sidecar(run=2).write_text(json.dumps(fields | {"SliceEncodingDirection": "i"}))
    assert check(tiny) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"SpacingBetweenSlices": 3.5},
            "SpacingBetweenSlices is 3.5 mm, but slices are 4 mm apart by the header; the ",
        ),
        (
            {"SliceTiming": [0.0]},
            "SliceTiming has 1 times, but the stack has 14 slices; when each was acquired is not ",
        ),
        ({"SliceTiming": [0.1] * 28}, "SliceTiming has 28 times, but the stack has 14 slices; "),
        ({"SliceTiming": "alt+z"}, "SliceTiming is no list of times, but the stack has 14 slices; "),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR", "NORM"]}, "ImageType has MPR: its slices were not acquired like "),
        ({"ImageType": "DERIVED\\SECONDARY\\REFORMATTED"}, "ImageType has REFORMATTED: its slices "),
        ({"SpacingBetweenSlices": 4.05, "SliceTiming": [0.1] * 14, "ImageType": ["ORIGINAL", "PRIMARY", "M"]}, ""),
        ({"SpacingBetweenSlices": "4", "SliceTiming": [], "ImageType": 3}, ""),
        ({"SpacingBetweenSlices": 0}, ""),
        ({"SpacingBetweenSlices": 10**400}, ""),
    ],
)
def test_what_the_sidecar_says_against_the_image_is_said(tiny_bids, fields, said):
    tiny = tiny_bids(thickness=4.0)
    tiny.sidecar(run=2).write_text(json.dumps({"SliceThickness": 4.0} | fields))
    assert [line.startswith(f"run-2: {said}") for line in check(tiny)] == [True] * bool(said)


def test_one_image_as_two_stacks_is_said(tiny_bids):
    tiny = tiny_bids(thickness=4.0, stacks=4)
    image, _, affine = ball_stack(1)
    write_nifti(tiny.stack(run=4), image, affine)
    assert check(tiny) == [
        "run-1, run-4: every voxel is the same, so that one image counts 2 times; leave all but one "
        "out with --bids-filter-file"
    ]


def test_the_distance_of_slices_is_across_them(tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    for change, path in ((0, tiny.stack(run=1)), (1, tiny.mask(run=1))):
        image, affine = ball_stack(1)[change], ball_stack(1)[2]
        affine[1, 2] = 4 * np.tan(np.radians(30))  # each slice is moved along itself
        write_nifti(path, image, affine)
    assert [line for line in check(tiny) if "apart" in line] == []


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
    tiny.stack(run=2).write_bytes(content[: len(content) // 2])
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
    assert check(tiny) == []  # as one with three axes


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


def test_real_data_has_a_usual_gap(test_data, caplog):
    root = test_data / "fetal-stacks-mialsrtk"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    (task,) = find_tasks(root, Selection(mask_datasets={"masks": root / "derivatives" / "manual_masks"}))
    caplog.set_level("INFO", logger="gsbids.bids")
    assert check_task(fill_thickness(task)) == []
    assert "slices are 3 mm thick (sidecar) and 3.3 mm apart (header), a gap of 0.3 mm" in caplog.text
