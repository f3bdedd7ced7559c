# SPDX-License-Identifier: Apache-2.0
"""Co-registration of stacks: known offsets are found, nothing is made worse, bits repeat."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack
from gsbids.recon.registration.isotropic import isotropic_volume
from gsbids.recon.registration.register import register_stacks, rotation_cover, similarity

AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


def acquire(orientation, move=None, thickness=4.0, spacing=1.5):
    """A thick stack of one asymmetric object, moved by a rigid transform."""
    x, y, z = (np.linspace(-48, 48, 65),) * 3
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1)
    radius = np.linalg.norm(grid / (34, 42, 28), axis=-1)
    texture = ndimage.gaussian_filter(np.random.default_rng(7).normal(size=radius.shape), 4)
    brain = (300 + 120 * texture / texture.std() + 2 * grid[..., 1]) * (radius < 1)
    order = AXES[orientation]
    affine = np.zeros((4, 4))
    shape = tuple(int(96 // step) for step in (spacing, spacing, thickness))
    for k, (axis, step) in enumerate(zip(order, (spacing, spacing, thickness), strict=True)):
        affine[axis, k], affine[axis, 3] = step, -step * (shape[k] - 1) / 2
    affine[3, 3] = 1
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = index @ affine[:3, :3].T + affine[:3, 3]

    def at(image, shift=0.0):
        moved = places + shift * np.eye(3)[order[2]]
        return ndimage.map_coordinates(image, np.moveaxis((moved + 48) / 1.5, -1, 0), order=1)

    image = np.mean([at(brain, shift) for shift in np.linspace(-1.5, 1.5, 4)], axis=0)
    noise = np.random.default_rng(len(orientation)).normal(0, 5, shape)
    mask = at((radius < 1).astype(float)) > 0.5
    if move is not None:
        affine = move @ affine
    return Stack(orientation, np.maximum(image + noise, 0).astype(np.float32), mask, affine, thickness)


def rigid(degrees, shift):
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift
    return move


def distance(stack, found, truth):
    """Root mean square distance over the brain of two transforms, mm."""
    points = np.argwhere(stack.mask)[::17] @ stack.affine[:3, :3].T + stack.affine[:3, 3]
    apart = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    return np.sqrt(np.mean(np.sum(apart**2, axis=1)))


MOVES = {
    "axial": rigid((30, -20, 15), (12, 30, -9)),
    "coronal": np.eye(4),
    "sagittal": rigid((-25, 28, -30), (-60, 5, 11)),
}


@pytest.fixture(scope="module")
def moved():
    return [acquire(name, move) for name, move in MOVES.items()]


@pytest.fixture(scope="module")
def registration(moved):
    return register_stacks(moved, threads=2)


def test_offsets_up_to_30_degrees_are_found(moved, registration):
    origin = MOVES[moved[registration.template].name]
    for k, stack in enumerate(moved):
        truth = origin @ np.linalg.inv(MOVES[stack.name])
        assert distance(stack, registration.transforms[k], truth) < 0.5
    assert registration.accepted.all()
    assert (registration.similarity_after > 0.9).all()
    others = np.arange(3) != registration.template
    assert (registration.similarity_before[others] < 0.6).all()
    assert registration.reason[registration.template].startswith("Template")


def test_transforms_are_rigid_and_repeat_to_the_bit(moved, registration):
    turn = registration.transforms[:, :3, :3]
    np.testing.assert_allclose(turn @ np.swapaxes(turn, 1, 2), np.tile(np.eye(3), (3, 1, 1)), atol=1e-12)
    again = register_stacks(moved, threads=1)
    assert again.transforms.tobytes() == registration.transforms.tobytes()


def test_upside_down():
    stacks = [acquire("axial"), acquire("coronal", rigid((180, 0, 20), (0, 15, 40)))]
    found = register_stacks(stacks)
    truth = np.linalg.inv(rigid((180, 0, 20), (0, 15, 40)))
    if found.template == 1:
        truth = np.linalg.inv(truth)
    moving = 1 - found.template
    assert distance(stacks[moving], found.transforms[moving], truth) < 0.7


def test_what_cannot_get_better_stays():
    still = acquire("axial")
    found = register_stacks([still, replace(still, name="again")])
    other = 1 - found.template
    assert not found.accepted[other]
    np.testing.assert_array_equal(found.transforms, np.tile(np.eye(4), (2, 1, 1)))
    assert found.reason[other].startswith("Left in the scanner's space")


def test_one_stack_and_a_tiny_mask():
    still = acquire("axial")
    alone = register_stacks([still])
    np.testing.assert_array_equal(alone.transforms, np.eye(4)[None])
    tiny = np.zeros_like(still.mask)
    tiny[30, 30, 10] = True
    found = register_stacks([still, replace(still, mask=tiny)])
    assert found.template == 0
    assert np.isfinite(found.transforms).all()
    assert "low" in found.reason[1]


def test_similarity_needs_overlap():
    volume = isotropic_volume(acquire("axial"), 3.0)
    assert similarity(volume, volume, np.eye(4)) == pytest.approx(1.0)
    assert similarity(volume, volume, rigid((0, 0, 0), (60, 0, 0))) == 0.0


def test_cover_of_rotations():
    cover = rotation_cover(30.0)
    assert np.linalg.det(cover) == pytest.approx(np.ones(len(cover)))
    trials = Rotation.random(200, random_state=1).as_matrix()
    trace = np.einsum("aij,bij->ab", trials, cover)
    nearest = np.degrees(np.arccos(np.clip((trace.max(axis=1) - 1) / 2, -1, 1)))
    assert nearest.max() < 30


def test_the_world_origin_does_not_matter(moved):
    shift = np.array([500.0, -300.0, 200.0])
    near, far = (
        [replace(s, affine=(s.affine + np.pad(by[:, None], [(0, 1), (3, 0)])).astype(np.float32)) for s in moved]
        for by in (0 * shift, shift)
    )
    found, there = register_stacks(near), register_stacks(far)
    np.testing.assert_array_equal(there.similarity_after, found.similarity_after)
    back = there.transforms.copy()
    back[:, :3, 3] += back[:, :3, :3] @ shift - shift
    np.testing.assert_allclose(back, found.transforms, atol=1e-3)
