# SPDX-License-Identifier: Apache-2.0
"""Slices gathered again: where they were, as bright as they were, and with masks that have followed the head."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_consensus import SPACING, make_scene, share

from gsbids.recon.fitting.poses import PoseState
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState
from gsbids.recon.motion import RigidMotion
from gsbids.recon.svr.refine_masks import gathered_again, refine_masks

RIM = 4.0  # mm


@pytest.fixture(scope="module")
def scene():
    return make_scene()


def gathered(scene, stacks, jitter=0.0):
    """Slices, started where the scanner put them, and a state in which they are where the head was, or about there."""
    slices = SliceSet.from_stacks(stacks, np.tile(np.eye(4), (len(stacks), 1, 1)), RIM)
    state, rng = FitState.start(slices), np.random.default_rng(5)
    still = world(slices.nominal, slices)
    moved = still.moved(np.stack([scene.moves[n][k] for n, k in numbers(slices)]))
    moved = moved.step(rng.normal(0, 0.02 * jitter, (len(slices), 3)), rng.normal(0, jitter, (len(slices), 3)))
    state.pose = PoseState(
        RigidMotion(moved.rotation, moved.translation - slices.origin), np.ones(len(slices)), np.arange(6.0)
    )
    state.gain = np.exp(rng.normal(0, 0.1, len(slices)))
    return slices, state


def with_bright_ball(scene):
    """Stacks in which what lies still is brighter than brain; the first mask holds it."""
    bright = [
        dataclasses.replace(stack, image=np.where(ball, 250, stack.image).astype(np.float32))
        for stack, ball in zip(scene.stacks, scene.still, strict=True)
    ]
    return [dataclasses.replace(bright[0], mask=bright[0].mask | scene.still[0]), *bright[1:]]


def numbers(slices):
    """Stack and number of every slice."""
    return list(zip(slices.stack_index.tolist(), slices.slice_index.tolist(), strict=True))


def world(motion, slices):
    return RigidMotion(motion.rotation, motion.translation + slices.origin)


def moves_of(slices, state):
    """Transforms scanner -> anatomy, world, by stack and number of the slice."""
    every = world(state.pose.motion, slices).as_affines(world(slices.nominal, slices))
    return dict(zip(numbers(slices), every, strict=True))


def test_slices_gathered_anew_are_where_they_were_and_as_bright(scene):
    slices, state = gathered(scene, scene.stacks, jitter=1.0)
    turn = np.eye(4)
    turn[:3, :3], turn[:3, 3] = Rotation.from_rotvec([0.3, 0.2, -0.4]).as_matrix(), [20.0, -7.0, 11.0]
    start = slices.start.moved(turn)  # another start of a stack: the common origin moves, too
    own = slices.stack_index == 1
    slices = dataclasses.replace(
        slices,
        start=RigidMotion(
            np.where(own[:, None, None], start.rotation, slices.start.rotation),
            np.where(own[:, None], start.translation, slices.start.translation),
        ),
    )
    stacks, fresh, now = gathered_again(scene.stacks, slices, state, 2 * RIM)
    assert stacks is scene.stacks
    assert numbers(fresh) == numbers(slices)
    assert np.abs(fresh.origin - slices.origin).max() > 1
    for one, other in (
        (slices.nominal, fresh.nominal),
        (slices.start, fresh.start),
        (state.pose.motion, now.pose.motion),
    ):
        a, b = world(one, slices), world(other, fresh)
        np.testing.assert_allclose(b.rotation, a.rotation, atol=1e-9)
        np.testing.assert_allclose(b.translation, a.translation, atol=1e-6)
    np.testing.assert_allclose(now.gain, state.gain)
    np.testing.assert_array_equal(now.pose.information, state.pose.information)
    assert fresh.mask.sum() == slices.mask.sum()
    assert fresh.region.sum() > slices.region.sum()


def test_gains_follow_the_intensities_that_stand_for_one(scene):
    """A mask with something bright beside the brain sets another scale; the gains are of the same intensities."""
    given = with_bright_ball(scene)
    slices, state = gathered(scene, given)
    _, fresh, now = refine_masks(given, slices, state, RIM)
    assert fresh.stack_scale[0] < 0.7 * slices.stack_scale[0]
    before, after = (
        dict(zip(numbers(s), g * s.stack_scale[s.stack_index], strict=True))
        for s, g in ((slices, state.gain), (fresh, now.gain))
    )
    for key in set(before) & set(after):
        assert after[key] == pytest.approx(before[key])


def test_masks_that_the_stacks_agree_on_are_the_very_same(scene):
    slices, state = gathered(scene, scene.stacks)
    stacks, fresh, _ = refine_masks(scene.stacks, slices, state, RIM)
    assert stacks is scene.stacks
    np.testing.assert_array_equal(fresh.mask, slices.mask)
    np.testing.assert_array_equal(fresh.region, slices.region)


def test_what_lies_still_is_part_of_no_mask_and_hardly_of_a_rim(scene):
    given = with_bright_ball(scene)
    slices, state = gathered(scene, given)
    stacks, fresh, now = refine_masks(given, slices, state, 2 * RIM)
    assert share(scene.still[0], stacks[0].mask) < 0.1
    assert fresh.region[fresh.mask].all()
    before, after = moves_of(slices, state), moves_of(fresh, now)
    for key in set(before) & set(after):
        np.testing.assert_allclose(after[key], before[key], atol=1e-6)
    # Slices of the second stack have the head and what lies still beside it.
    ball, plain = scene.still[1], SliceSet.from_stacks(stacks, slices.starts, 2 * RIM)
    (still, other), (left, others) = (
        [(rim & ball).sum(), (rim & ~ball).sum()]
        for rim in (rim_of(plain, 1, ball.shape), rim_of(fresh, 1, ball.shape))
    )
    assert left < 0.4 * still
    assert others > 0.8 * other


def rim_of(slices, n, shape):
    """Voxels (X, Y, Z) of a stack that are fitted and not in the mask."""
    s, i, j = np.nonzero(slices.region & ~slices.mask & (slices.stack_index == n)[:, None, None])
    out = np.zeros(shape, bool)
    out[i + slices.corner[s, 0], j + slices.corner[s, 1], slices.slice_index[s]] = True
    return out


def test_a_slice_that_comes_in_starts_with_the_motion_of_its_neighbour(scene):
    """The mask of one stack ends too early: its last slices with brain are gathered, where their neighbour is."""
    brain = np.flatnonzero(scene.stacks[1].mask.any((0, 1)))
    late = scene.stacks[1].mask.copy()
    late[:, :, brain[-4] :] = False
    given = scene.with_masks({1: late})
    slices, state = gathered(scene, given, jitter=0.5)
    stacks, fresh, now = refine_masks(given, slices, state, RIM)
    before, after = moves_of(slices, state), moves_of(fresh, now)
    came = [k for n, k in after if n == 1 and (n, k) not in before]
    assert came
    last = max(k for n, k in before if n == 1)
    assert min(came) == last + 1
    gains = dict(zip(numbers(slices), state.gain, strict=True)), dict(zip(numbers(fresh), now.gain, strict=True))
    scale = slices.stack_scale[1] / fresh.stack_scale[1]
    for k in came:
        np.testing.assert_allclose(after[1, k], before[1, last], atol=1e-6)
        assert gains[1][1, k] == pytest.approx(scale * gains[0][1, last])
    assert stacks[1].mask[:, :, came].any()


def test_slices_without_a_say_move_no_mask(scene):
    """Rejected slices do not say what is head; those of one stack alone do not either."""
    given = scene.with_masks({0: scene.stacks[0].mask | scene.still[0]})
    slices, state = gathered(scene, given)
    state.slice_weight = np.where(slices.stack_index == 0, 1.0, 0.0)
    stacks, _, _ = refine_masks(given, slices, state, RIM)
    assert stacks is given


def test_a_stack_that_shows_nothing_of_the_head_spoils_no_mask(scene):
    """Its mask is on something far from the head. The others' follow the head all the same."""
    missing, given, slices, state = with_stranger(scene)
    stacks, _, _ = refine_masks(given, slices, state, RIM)
    assert stacks[1].mask.sum() > missing.sum()


def test_a_stack_that_would_lose_too_much_keeps_its_mask(scene, monkeypatch):
    slices, state = gathered(scene, scene.stacks)

    def smaller(stacks, *_):
        return [
            dataclasses.replace(stack, mask=stack.mask & (anatomy[..., 0] > low))
            for stack, anatomy, low in zip(stacks, scene.anatomy, (11.0, -12.0, -99.0), strict=True)
        ]

    cut = smaller(scene.stacks)
    lost = [1 - share(stack.mask, new.mask) for stack, new in zip(scene.stacks, cut, strict=True)]
    assert lost[0] > 0.7 > 0.4 > lost[1] > 0.03
    monkeypatch.setattr("gsbids.recon.svr.refine_masks.refined", smaller)
    stacks, _, _ = refine_masks(scene.stacks, slices, state, RIM)
    assert stacks[0] is scene.stacks[0]
    np.testing.assert_array_equal(stacks[1].mask, cut[1].mask)


def with_stranger(scene):
    """A mask that lacks a piece, and stacks: the second has this mask, and a fourth one of something far away."""
    far = np.zeros_like(scene.stacks[0].mask)
    away = np.argwhere(~far) * SPACING
    far[:] = (np.linalg.norm(away - [12, 12, 60], axis=1) < 10).reshape(far.shape)
    stranger = dataclasses.replace(scene.stacks[0], name="stranger", mask=far)
    missing = scene.stacks[1].mask & (scene.anatomy[1][..., 1] < 12)
    four = dataclasses.replace(scene, moves=[*scene.moves, scene.moves[0]])
    given = [*scene.with_masks({1: missing}), stranger]
    return missing, given, *gathered(four, given)
