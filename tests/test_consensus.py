# SPDX-License-Identifier: Apache-2.0
"""The head that stacks agree on: what lies still in the scanner leaves the masks, what all show as brain joins them."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.recon.svr.consensus import HeadRegion, find_head, places, refined
from gsbids.recon.svr.refine_masks import CHANGED, change

HEAD = np.array([24.0, 28.0, 22.0])  # mm, half axes
SPACING = np.array([2.0, 2.0, 4.0])
AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
#: Where the head was when each stack was acquired: rotation vector (degrees) and shift (mm), anatomy -> scanner.
MOVES = (((0, 0, 0), (0, 0, 0)), ((18, -10, 6), (9, -7, 11)), ((-12, 15, 20), (-10, 8, -6)))
LEVEL, FLUID, NOISE = 100.0, 60.0, 5.0  # intensities: of the brain, around it, and the noise
BALL, BESIDE = 14.0, np.array([0.0, 0.0, 33.0])  # mm: something still beside the head of the first stack


def head_at(n):
    """Rigid transform (4, 4) of the head in stack ``n``."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(MOVES[n][0], degrees=True).as_matrix()
    move[:3, 3] = MOVES[n][1]
    return move


def texture(points, seed):
    """Smooth intensities about 1, (...,)."""
    waves = np.random.default_rng(seed).normal(0, 0.22, (12, 3))
    return 1 + 0.12 * np.sin(points @ waves.T + 5 * waves[:, 0]).sum(-1)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Stacks of a head that was somewhere else in each of them, and a ball that was in one place all the time.

    ``still`` are voxels of the ball beside the head; ``anatomy`` where voxels are in the head (X, Y, Z, 3).
    """

    stacks: list
    still: list
    anatomy: list
    moves: list
    levels: list

    def with_masks(self, masks):
        """Stacks, some with other masks, by their numbers."""
        return [dataclasses.replace(s, mask=masks.get(n, s.mask)) for n, s in enumerate(self.stacks)]

    def refined(self, stacks):
        return refined(stacks, self.moves, find_head(stacks, self.moves, self.levels))


def make_scene() -> Scene:
    """Three stacks, masks as the head is."""
    stacks, still, anatomies, moves = [], [], [], []
    for n, order in enumerate(AXES):
        shape, affine = np.array([60, 60, 30]), np.zeros((4, 4))
        affine[3, 3] = 1
        affine[order, range(3)] = SPACING
        affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
        world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
        move = head_at(n)
        anatomy = (world - move[:3, 3]) @ move[:3, :3]
        inside = ((anatomy / HEAD) ** 2).sum(-1) < 1
        ball = (np.linalg.norm(world - BESIDE, axis=-1) < BALL) & ~inside
        image = LEVEL * np.where(inside, texture(anatomy, 1), 0.8 * texture(world, 2))
        image = np.where(inside | ball, image, FLUID) + np.random.default_rng(n).normal(0, NOISE, shape)
        stacks.append(Stack(f"run-{n + 1}", np.clip(image, 0, None).astype(np.float32), inside, affine, SPACING[2]))
        still.append(ball)
        anatomies.append(anatomy)
        moves.append(np.tile(np.linalg.inv(move), (shape[2], 1, 1)))
    return Scene(stacks, still, anatomies, moves, [np.full(len(move), LEVEL) for move in moves])


@pytest.fixture(scope="module")
def scene():
    return make_scene()


def share(part, mask):
    """How much of a part is in a mask."""
    return (mask & part).sum() / part.sum()


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_masks_that_agree_stay_as_they_are(scene, pixels):
    """Also masks that are all tight: what changes is less than what counts as a change."""
    tight = {
        n: np.stack(
            [ndimage.binary_erosion(m, iterations=pixels) if pixels else m for m in np.moveaxis(s.mask, 2, 0)], 2
        )
        for n, s in enumerate(scene.stacks)
    }
    given = scene.with_masks(tight)
    found = scene.refined(given)
    assert max(change(one, other) for one, other in zip(given, found, strict=True)) < CHANGED


@pytest.mark.parametrize("which", [(0,), (0, 1, 2)])
def test_what_lies_still_while_the_head_moves_leaves_the_masks(scene, which):
    given = scene.with_masks({n: scene.stacks[n].mask | scene.still[n] for n in which})
    found = scene.refined(given)
    for n in which:
        assert share(scene.still[n], found[n].mask) < 0.1
    for true, new in zip(scene.stacks, found, strict=True):
        assert share(true.mask, new.mask) > 0.95


def test_what_the_stacks_show_differently_is_foreign(scene):
    given = scene.with_masks({0: scene.stacks[0].mask | scene.still[0]})
    head = find_head(given, scene.moves, scene.levels)
    ball = places(np.argwhere(scene.still[0]), given[0], scene.moves[0])
    middle, heart = ball.mean(0, keepdims=True), np.zeros((1, 3))
    assert head.foreign_at(middle).all()
    assert not head.foreign_at(heart).any()
    assert max(head.depths_at(middle)) < 0
    assert min(head.depths_at(heart)) > 10


def test_a_piece_that_one_mask_lacks_joins_it(scene):
    """But for what is so near to the border of the head that either may be right."""
    across = np.linalg.norm(scene.anatomy[1] / HEAD, axis=-1)
    piece = scene.stacks[1].mask & (scene.anatomy[1][..., 1] > 14)
    given = scene.with_masks({1: scene.stacks[1].mask & ~piece})
    found = scene.refined(given)
    assert share(piece & (across < 0.85), found[1].mask) > 0.9
    assert not (found[1].mask & (across > 1.1)).any()
    for n in (0, 2):
        assert change(given[n], found[n]) < CHANGED


def test_no_region_is_believed_that_is_much_smaller_than_the_masks(scene):
    """All masks hold a little of the head and much of what lies still."""
    little = {n: np.linalg.norm(anatomy, axis=-1) < 11 for n, anatomy in enumerate(scene.anatomy)}
    assert find_head(scene.with_masks(little), scene.moves, scene.levels) is not None
    end = np.zeros_like(scene.stacks[0].mask)
    end[:16, :, 4:-4] = True
    much = {n: mask | end for n, mask in little.items()}
    assert find_head(scene.with_masks(much), scene.moves, scene.levels) is None


def test_without_two_looks_or_anything_in_common_there_is_no_region(scene):
    none = [np.zeros_like(level) for level in scene.levels]
    assert find_head(scene.stacks, scene.moves, [scene.levels[0], *none[1:]]) is None
    assert find_head(scene.stacks, scene.moves, none) is None
    apart = {n: stack.mask & (scene.anatomy[n][..., n] > 14) for n, stack in enumerate(scene.stacks)}
    assert find_head(scene.with_masks(apart), scene.moves, scene.levels) is None


def test_depth_is_positive_inside_and_counts_from_the_border():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-30, -29, -28]
    index = np.stack(np.meshgrid(*[np.arange(31)] * 3, indexing="ij"), -1)
    far = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3], axis=-1)
    head = HeadRegion(far < 16, far < 11, far > 24, affine)
    points = np.array([[0.0, 0, 0], [10, 0, 0], [0, -14, 0], [0, 0, 18], [20, 0, 0], [200, 0, 0]])
    for depth, radius in zip(head.depths_at(points), (16, 11), strict=True):
        np.testing.assert_allclose(depth[:5], radius - np.linalg.norm(points[:5], axis=1), atol=2.0)  # a voxel
        assert depth[5] == -1000
    np.testing.assert_array_equal(head.foreign_at(points), [False, False, False, False, False, False])
    assert head.foreign_at(np.array([[27.0, 0, 0]])).all()
    for depth, region in zip(head.depths, (head.inside, head.sure), strict=True):
        np.testing.assert_array_equal(depth > 0, region)
        assert np.abs(depth[1:][np.diff(region.astype(int), axis=0) != 0]).max() <= 1.0 + 1e-9
