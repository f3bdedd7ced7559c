# SPDX-License-Identifier: Apache-2.0
"""The brain mask of a volume by the shape of an atlas that is laid on it."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from gsbids.imaging.masks import dice
from gsbids.imaging.stack import Stack
from gsbids.masking.shape_prior import LEAST_OVERLAP, mask_by_atlas
from gsbids.masking.template import fetal_templates

WIDER = 1.08  # along one axis: a head of another shape than the atlas


@cache
def case():
    """A head of 25 weeks, its true brain, and a vote that lost a rim and a corner; the atlas of 28 weeks."""
    template, atlas = (fetal_templates()[n].brain for n in (1, 2))
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    shape = tuple(int(n) for n in np.array(template.image.shape) * template.spacing / 1.5 + 12)
    centre = template.affine @ np.r_[np.array(template.image.shape) / 2, 1]
    grid[:3, 3] = centre[:3] - 0.75 * np.array(shape)
    stretch = np.diag([WIDER, 1, 1, 1])
    stretch[:3, 3] = centre[:3] - stretch[:3, :3] @ centre[:3]
    back = np.linalg.inv(stretch @ template.affine) @ grid
    image, brain = (
        ndimage.affine_transform(each.astype(np.float32), back[:3, :3], back[:3, 3], output_shape=shape, order=1)
        for each in (template.image * template.mask, template.mask)
    )
    brain = brain > 0.5
    near = ndimage.distance_transform_edt(~brain, 1.5)
    rng = np.random.default_rng(0)
    image = image + np.where((near > 3) & (near < 7), 0.9 * image.max(), 0) + rng.normal(0, 0.02 * image.max(), shape)
    vote = ndimage.binary_erosion(brain, iterations=1)
    vote[:, : int(np.argwhere(brain)[:, 1].min()) + 8] = False
    known = near < 6
    start = np.eye(4)
    start[:3, :3] *= (template.mask.sum() / atlas.mask.sum()) ** (1 / 3)
    middle = atlas.affine[:3, :3] @ np.argwhere(atlas.mask).mean(0) + atlas.affine[:3, 3]
    start[:3, 3] = grid[:3, :3] @ np.argwhere(brain).mean(0) + grid[:3, 3] - start[:3, :3] @ middle
    head = Stack("head", (image * known).astype(np.float32), vote, grid, 1.5)
    return head, atlas, start, brain, known


def test_what_the_vote_lost_comes_back():
    head, atlas, start, brain, known = case()
    mask, shared = mask_by_atlas(head, atlas, start, head.mask, known, head.affine)
    assert dice(head.mask, brain) < 0.9
    assert dice(mask, brain) > max(0.92, dice(head.mask, brain) + 0.04)
    assert shared == pytest.approx(dice(mask, head.mask))
    assert LEAST_OVERLAP < shared < 1
    assert not (mask & ~known).any()


def test_the_same_to_the_bit_when_done_again():
    head, atlas, start, _, known = case()
    one, other = (mask_by_atlas(head, atlas, start, head.mask, known, head.affine)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_a_finer_grid_of_the_volume_has_the_same_mask():
    head, atlas, start, brain, known = case()
    grid = head.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    grid[:3, 3] -= 0.25 * 1.5
    fine = [np.kron(each, np.ones((2, 2, 2), bool)) for each in (head.mask, known, brain)]
    mask, _ = mask_by_atlas(head, atlas, start, fine[0], fine[1], grid)
    assert dice(mask, fine[2]) > 0.92


def test_an_atlas_that_lies_elsewhere_is_not_trusted():
    head, atlas, start, _, known = case()
    start = start.copy()
    start[:3, 3] += 70
    _, shared = mask_by_atlas(head, atlas, start, head.mask, known, head.affine)
    assert shared < LEAST_OVERLAP
