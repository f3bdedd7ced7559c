# SPDX-License-Identifier: Apache-2.0
"""Masks of stacks: each mode, files on other grids, and what is refused."""

import logging

import numpy as np
import pytest

from gsbids.errors import InputError
from gsbids.imaging.geometry import conform
from gsbids.imaging.masks import dice
from gsbids.imaging.nifti import save_image
from gsbids.masking.stack_masks import full_mask, is_head_in_air, is_stripped, make_mask, nonzero_mask, otsu_mask

AFFINE = np.array([[1.0, 0, 0, -20], [0, 1, 0, -20], [0, 0, 3, -18], [0, 0, 0, 1]])
SHAPE = (40, 42, 13)


def brain(radius=12.0, affine=AFFINE, shape=SHAPE):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3], axis=-1) < radius


def image_of(mask, background=30.0):
    noise = np.random.default_rng(3).normal(0, 8, mask.shape)
    return np.clip(np.where(mask, 200.0, background) + noise, 1, None).astype(np.float32)


def test_simple_masks():
    mask = brain()
    mask[20, 21, 6] = False
    stripped = image_of(mask) * mask
    assert nonzero_mask(stripped)[20, 21, 6]
    assert dice(nonzero_mask(stripped), mask) > 0.99
    other = image_of(mask)
    other[:3, :3] = 220
    assert dice(otsu_mask(other), mask) > 0.98
    assert not otsu_mask(np.full(SHAPE, 5.0)).any()
    assert full_mask(other).all()


def test_auto_prefers_file_then_zeros_then_threshold(tmp_path, caplog):
    mask = brain()
    path = save_image(tmp_path / "m.nii.gz", brain(9.0), AFFINE, "uint8")
    made, reason, *_ = make_mask("auto", image_of(mask), AFFINE, path)
    np.testing.assert_array_equal(made, brain(9.0))
    assert reason == "Mask file m.nii.gz."
    made, reason, *_ = make_mask("auto", image_of(mask) * mask, AFFINE)
    assert dice(made, mask) > 0.99
    assert "not zero" in reason
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="gsbids"):
        made, reason, method, doubt = make_mask("auto", image_of(mask, 5.0), AFFINE)
    assert dice(made, mask) > 0.98
    assert (method, doubt) == ("otsu", "")
    assert "A head in air" in reason
    assert reason in caplog.text


def test_modes_that_are_asked_for(tmp_path):
    mask = brain()
    path = save_image(tmp_path / "m.nii.gz", brain(9.0), AFFINE, "uint8")
    assert make_mask("none", image_of(mask), AFFINE, path)[0].all()
    assert dice(make_mask("otsu", image_of(mask), AFFINE, path)[0], mask) > 0.98
    assert make_mask("nonzero", image_of(mask), AFFINE, path)[0].all()
    np.testing.assert_array_equal(make_mask("derivatives", image_of(mask), AFFINE, path)[0], brain(9.0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mask_of_the_stack_before_conforming(tmp_path, axis, caplog):
    mask = brain()
    path = save_image(tmp_path / "m.nii.gz", mask, AFFINE, "uint8")
    image, affine = conform(image_of(mask), AFFINE, axis)
    with caplog.at_level(logging.INFO, logger="gsbids"):
        made = make_mask("auto", image, affine, path).mask
    np.testing.assert_array_equal(made, conform(mask, AFFINE, axis)[0])
    assert not caplog.records


def test_mask_on_another_grid_is_said(tmp_path, caplog):
    fine = np.array([[0.7, 0, 0, -21], [0, 0.7, 0, -21], [0, 0, 0.7, -21], [0, 0, 0, 1.0]])
    path = save_image(tmp_path / "fine.nii.gz", 0.9 * brain(12, fine, (60, 60, 60)), fine)
    with caplog.at_level(logging.INFO, logger="gsbids"):
        made, reason, *_ = make_mask("auto", image_of(brain()), AFFINE, path)
    assert dice(made, brain()) > 0.97
    assert "resampled by affine" in reason
    assert "60 x 60 x 60" in caplog.text


def test_refused(tmp_path):
    image = image_of(brain())
    empty = save_image(tmp_path / "empty.nii.gz", np.zeros(SHAPE), AFFINE, "uint8")
    away = AFFINE.copy()
    away[0, 3] += 500
    apart = save_image(tmp_path / "apart.nii.gz", brain(), away, "uint8")
    for words, mode, file in (
        ("all zero", "auto", empty),
        ("does not overlap", "auto", apart),
        ("no mask file", "derivatives", None),
        ("unknown", "magic", None),
    ):
        with pytest.raises(InputError, match=words) as caught:
            make_mask(mode, image, AFFINE, file)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no voxel"):
        make_mask("nonzero", np.zeros(SHAPE), AFFINE)


def test_a_head_in_air_is_told_from_a_mother_and_zeros_around_her_from_a_stripped_skull():
    places = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (110, 120, 20)), indexing="ij"), -1)
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    noise = np.random.default_rng(0).rayleigh(8.0, places.shape[:3])

    def ellipse(a, b):
        return np.hypot(places[..., 0] * 2 / a, places[..., 1] * 2 / b) < 1

    infant, mother = ellipse(50, 65), ellipse(85, 200)
    neck = infant | ((np.abs(places[..., 0]) < 15) & (places[..., 1] > 0))
    assert is_head_in_air(300 * infant + noise, affine)
    assert is_head_in_air(300 * neck[:, :95] + noise[:, :95], affine)
    assert not is_head_in_air(300 * mother + noise, affine)
    assert not is_head_in_air(np.full(noise.shape, 300.0), affine)
    assert not is_head_in_air(np.zeros(noise.shape), affine)
    assert is_stripped(300 * infant, affine)
    assert not is_stripped(300 * mother, affine)  # a fifth is 0, but the rest is no brain
    assert (mother == 0).mean() > 0.2
    assert not is_stripped(300 * infant + noise, affine)


@pytest.mark.parametrize("mode", ["auto", "otsu", "nonzero"])
def test_a_made_mask_larger_than_any_brain_is_refused(mode):
    image = np.zeros((60, 60, 20), np.float32)
    image[10:50, 10:50, :] = 100.0
    big = np.diag([5.0, 5.0, 5.0, 1.0])
    with pytest.raises(InputError, match=r"4\.0 litres.*-d/--derivatives"):
        make_mask(mode, image, big)
