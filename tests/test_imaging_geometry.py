# SPDX-License-Identifier: Apache-2.0
"""Slice axes, frames, masks on other grids."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.geometry import conform, slice_axis, slice_frames
from gsbids.imaging.masks import bounding_box, resample_mask, same_grid


def affine_of(spacing, degrees=(20, -35, 50), origin=(5, -7, 11), flip=(1, 1, 1)):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = turn * np.multiply(spacing, flip)
    affine[:3, 3] = origin
    return affine


def test_slice_axis_of_spacing_or_sidecar():
    assert slice_axis((30, 256, 256), affine_of((3, 1, 1))) == 0
    assert slice_axis((256, 256, 30), affine_of((1, 1, 3))) == 2
    assert slice_axis((64, 64, 64), affine_of((1.05, 1, 1))) == 2
    assert slice_axis((64, 64, 64), affine_of((1, 1, 3)), "j-") == 1
    with pytest.raises(InputError, match="SliceEncodingDirection"):
        slice_axis((2, 2, 2), np.eye(4), "z")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_conform_keeps_every_voxel_in_place(axis):
    data = np.random.default_rng(1).random((4, 5, 6)).astype(np.float32)
    affine = affine_of((1, 2, 3))
    moved, moved_affine = conform(data, affine, axis)
    assert moved.shape[2] == data.shape[axis]
    for index in np.ndindex(*moved.shape):
        world = moved_affine @ (*index, 1)
        source = np.rint(np.linalg.inv(affine) @ world)[:3].astype(int)
        assert data[tuple(source)] == moved[index]


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_frames_are_proper_and_reach_the_pixels(flip):
    shape, spacing = (5, 8, 4), (1.1, 0.9, 3.3)
    affine = affine_of(spacing, flip=flip)
    rotation, centre = slice_frames(affine, shape)
    assert rotation.shape == (4, 3, 3)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    for i, j, k in ((0, 0, 0), (4, 2, 1), (1, 7, 3)):
        offset = ((i - 2.0) * spacing[0], (j - 3.5) * spacing[1], 0.0)
        np.testing.assert_allclose(centre[k] + rotation[k] @ offset, (affine @ (i, j, k, 1))[:3], atol=1e-9)


def test_frames_of_sheared_stacks():
    affine = affine_of((1, 1, 3))
    affine[:3, 2] += 0.8 * affine[:3, 0]  # oblique third axis: slices stay planes
    rotation, centre = slice_frames(affine, (4, 4, 3))
    np.testing.assert_allclose(rotation[0][:, 0], affine[:3, 0], atol=1e-9)
    np.testing.assert_allclose(centre[1] - centre[0], affine[:3, 2], atol=1e-9)
    affine[:3, 1] += np.tan(np.radians(0.8)) * affine[:3, 0]
    rotation, _ = slice_frames(affine, (4, 4, 3))
    np.testing.assert_allclose(rotation[0].T @ rotation[0], np.eye(3), atol=1e-12)
    affine[:3, 1] += np.tan(np.radians(3)) * affine[:3, 0]
    with pytest.raises(InputError, match="degrees from orthogonal"):
        slice_frames(affine, (4, 4, 3))


def test_same_grid():
    affine = affine_of((1, 1, 3))
    near, far = affine.copy(), affine.copy()
    near[0, 3] += 0.005
    far[0, 0] += 0.01
    assert same_grid((20, 20, 5), affine, (20, 20, 5), near)
    assert not same_grid((20, 20, 5), affine, (20, 20, 5), far)
    assert not same_grid((20, 20, 5), affine, (20, 20, 6), affine)


def ball(affine, shape, centre, radius):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre, axis=-1) < radius


def test_mask_on_another_grid():
    centre = np.array((12.0, -3.0, 20.0))
    fine, thick = affine_of((1, 1, 1), (0, 0, 0), centre - 20), affine_of((1.1, 1.1, 3), (30, 10, -80))
    thick[:3, 3] = centre - thick[:3, :3] @ (19.5, 19.5, 6.5)
    mask = ball(fine, (41, 41, 41), centre, 15)
    expected = ball(thick, (40, 40, 14), centre, 15)
    moved = resample_mask(mask, fine, thick, (40, 40, 14))
    assert 2 * (moved & expected).sum() / (moved.sum() + expected.sum()) > 0.97
    assert resample_mask(mask, fine, fine, mask.shape) is not mask
    np.testing.assert_array_equal(resample_mask(mask, fine, fine, mask.shape), mask)


def test_nothing_beyond_the_grid_of_a_mask():
    full = np.ones((4, 4, 4), bool)
    shifted = np.eye(4)
    shifted[0, 3] = 2.0
    moved = resample_mask(full, np.eye(4), shifted, (4, 4, 4))
    assert moved[:2].all()
    assert not moved[2:].any()


def test_bounding_box():
    mask = np.zeros((10, 10, 10), bool)
    mask[3:5, 0, 9] = True
    assert bounding_box(mask) == (slice(3, 5), slice(0, 1), slice(9, 10))
    assert bounding_box(mask, 2) == (slice(1, 7), slice(0, 3), slice(7, 10))
    assert bounding_box(mask, (0, 1, 2)) == (slice(3, 5), slice(0, 2), slice(7, 10))
    with pytest.raises(InputError, match="empty"):
        bounding_box(np.zeros((2, 2, 2), bool))
