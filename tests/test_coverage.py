# SPDX-License-Identifier: Apache-2.0
"""The volume that is shown: the rim only where more than a single slice saw it, and no black flecks in the brain."""

import numpy as np
import pytest
from qc_samples import sample_result
from test_recon import RADIUS, acquire, brain, slow_motion

from gsbids.imaging.geometry import slice_frames
from gsbids.recon.motion import RigidMotion
from gsbids.recon.volume.coverage import reproject_mask, shown_region, without_holes

RIM = 3.5  # mm


def ball(spacing, radius=14.0):
    """A ball of brain in the middle of a cube, world positions (X, Y, Z, 3), affine."""
    count = round(2 * (radius + 10) / spacing) + 1
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -spacing * (count - 1) / 2
    index = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(world, axis=-1) < radius, world, affine


@pytest.mark.parametrize("spacing", [0.8, 1.5])
def test_what_one_slice_alone_saw_of_the_rim_is_not_shown(spacing):
    """Above the brain, a single slice of one stack saw the rim; all else all of them saw."""
    brain, world, affine = ball(spacing)
    above = world[..., 2] > 4
    coverage = np.where(above & ~brain, 0.0, 3.0)
    slab = np.abs(world[..., 2] - 11) < 1.5
    coverage[slab & ~brain] = 1.0
    shown = shown_region(brain, coverage, affine, RIM)
    rim = shown_region(brain, np.full_like(coverage, 3.0), affine, RIM) & ~brain
    assert shown[brain].all()
    away = np.linalg.norm(world, axis=-1) > 14 + 2  # beside the brain, what saw the brain counts for the rim, too
    assert not (shown & rim & slab & away).any()
    assert shown[rim & (world[..., 2] < 0)].all()


def test_of_a_lone_stack_the_rim_is_shown():
    brain, _, affine = ball(1.0)
    rim = shown_region(brain, np.full(brain.shape, 3.0), affine, RIM) & ~brain
    assert rim.any()
    alone = shown_region(brain, np.ones(brain.shape), affine, RIM)
    np.testing.assert_array_equal(alone & ~brain, rim)
    assert not (shown_region(brain, np.where(brain, 1.0, 0.0), affine, RIM) & ~brain).any()


def test_the_rim_is_as_wide_as_asked_for():
    brain, world, affine = ball(1.0)
    far = np.linalg.norm(world, axis=-1)
    shown = shown_region(brain, np.full(brain.shape, 3.0), affine, RIM)
    assert shown[far < 14 + RIM - 1].all()
    assert not shown[far > 14 + RIM + 1].any()


def test_black_flecks_in_the_brain_are_filled_and_nothing_else_changes():
    brain, world, affine = ball(1.0)
    image = np.where(brain, 500 + 5 * world[..., 0], 0).astype(np.float32)
    holes = (np.linalg.norm(world - [4, -3, 2], axis=-1) < 2.5) | (np.linalg.norm(world - [13, 0, 0], axis=-1) < 1.5)
    holes &= brain
    found = without_holes(np.where(holes, 0, image).astype(np.float32), brain, affine)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[~holes], image[~holes])
    np.testing.assert_allclose(found[holes], image[holes], rtol=0.06)
    assert without_holes(image, brain, affine) is image
    none = np.zeros_like(brain)
    assert without_holes(image, none, affine) is image


def test_a_brain_that_is_black_throughout_stays_black():
    brain, _, affine = ball(1.0)
    black = np.zeros(brain.shape, np.float32)
    np.testing.assert_array_equal(without_holes(black, brain, affine), black)


@pytest.mark.parametrize("orientation", ["axial", "coronal"])
def test_a_mask_of_the_volume_is_seen_in_every_slice_where_it_had_moved(orientation):
    """Also in slices that were not fitted, about as in their neighbours."""
    count = acquire(brain(), orientation).image.shape[2]
    motion = slow_motion(count, 3, [0.1, 0.1, 0.1, 3.0, 3.0, 3.0])
    stack = acquire(brain(), orientation, motion=motion)
    still = RigidMotion(*slice_frames(stack.affine, stack.image.shape))
    fitted = np.array([k for k in range(count) if k not in (4, 5)])
    result = sample_result(
        nominal=still[fitted],
        motion=still.step(motion[:, :3], motion[:, 3:])[fitted],
        stack_index=np.ones(len(fitted), int),
        slice_index=fitted,
    )
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    affine[:3, 3] = -24.0
    world = np.moveaxis(np.indices((61, 61, 61)), 0, -1) * 0.8 - 24.0
    found = reproject_mask(((world / RADIUS) ** 2).sum(-1) < 1, affine, stack, 1, result)
    per_slice = 2 * (found & stack.mask).sum((0, 1)) / (found.sum((0, 1)) + stack.mask.sum((0, 1)) + 1e-9)
    large = stack.mask.sum((0, 1)) > 0.5 * stack.mask.sum((0, 1)).max()
    others = large & ~np.isin(np.arange(count), (4, 5))
    assert per_slice[others].min() > 0.96
    assert per_slice[large].min() > 0.85
    unmoved = acquire(brain(), orientation).mask
    assert 2 * (unmoved & stack.mask).sum() / (unmoved.sum() + stack.mask.sum()) < 0.96
    assert not reproject_mask(np.ones((61, 61, 61), bool), affine, stack, 0, result).any()
